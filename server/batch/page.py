"""Lists in pages, as OpenAI cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=64, description="The id of the last one of the page before.")]


class Listed(Protocol):
    id: str


Item = TypeVar("Item", bound=Listed)


def page(items: Sequence[Item], limit: int, after: str | None) -> dict[str, Any]:
    """What comes after the one of that id; nothing after one that is not there."""
    ids = [item.id for item in items]
    begin = 0 if after is None else ids.index(after) + 1 if after in ids else len(ids)
    shown = list(items[begin : begin + limit])
    return {
        "data": shown,
        "has_more": begin + limit < len(ids),
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
    }
