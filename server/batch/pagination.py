"""Pages of lists, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query
from pydantic import BaseModel
from starlette.responses import Response

LimitParam = Annotated[int, Query(ge=1, le=100)]
AfterParam = Annotated[str | None, Query(max_length=64, description="Id of the last item of the previous page.")]


class HasId(Protocol):
    """An item of a list."""

    id: str


Item = TypeVar("Item", bound=HasId)


def build_page(
    page_class: type[BaseModel], documents: Sequence[str], limit: int, parse: Callable[[str], HasId]
) -> Response:
    """Build the response with one page of a list. Slow for large documents: call it in a thread.

    Args:
        page_class: Class of the page, with the fields `data`, `has_more`, `first_id` and `last_id`.
        documents: JSON of the items, and of one more if the list goes on.
        limit: Largest number of items on the page.
        parse: Parses a document.

    Returns:
        The response.
    """
    items = [parse(document) for document in documents[:limit]]
    fields: dict[str, Any] = {
        "data": items,
        "has_more": len(documents) > limit,
        "first_id": items[0].id if items else None,
        "last_id": items[-1].id if items else None,
    }
    return Response(page_class.model_validate(fields).model_dump_json(), media_type="application/json")
