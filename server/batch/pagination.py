"""Pages of lists, in OpenAI's form, bounded in bytes and in the number that is in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Protocol

from fastapi import Depends, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from decoding.errors import Overloaded
from server.disconnect import run_until_disconnect
from server.middleware.auth import OwnerDep
from server.service import ServiceDep

LimitParam = Annotated[int, Query(ge=1, le=100)]
AfterParam = Annotated[str | None, Query(max_length=64, description="Id of the last item of the previous page.")]

MAX_PAGE_BYTES = 1_000_000  # of the documents of a page with two or more items
MAX_WAITING_PAGES = 256  # requests of one owner for pages that wait while others are built or sent


class ListItem(Protocol):
    """An item of a list."""

    id: str


async def wait_for_page_slot(request: Request, service: ServiceDep, owner: OwnerDep) -> AsyncGenerator[None, None]:
    """Wait until one more page may be in memory. It may until the client has read the page.

    A request whose client has disconnected does not wait, so that it does not count against its owner.

    Raises:
        Overloaded: `MAX_WAITING_PAGES` requests of the owner wait.
    """
    if service.list_page_queue.count_waiting(owner) >= MAX_WAITING_PAGES:
        raise Overloaded("Too many lists are requested at once; try again in a moment.", code="too_many_lists")
    async with AsyncExitStack() as slot:
        await run_until_disconnect(request, slot.enter_async_context(service.list_page_queue.hold(owner, 1)))
        yield


PageSlot = Depends(wait_for_page_slot)


def build_page(
    page_class: type[BaseModel], documents: Sequence[str], limit: int, parse: Callable[[str], ListItem]
) -> Response:
    """Build the response with one page of a list. Slow for large documents: call it in a thread.

    Args:
        page_class: Class of the page, with the fields `data`, `has_more`, `first_id` and `last_id`.
        documents: JSON of the items, and of one more if the list goes on.
        limit: Largest number of items on the page. A page of more than `MAX_PAGE_BYTES` has fewer, and at least one.
        parse: Parses a document.

    Returns:
        The response.
    """
    items, size = list[ListItem](), 0
    for document in documents[:limit]:
        size += len(document.encode())
        if items and size > MAX_PAGE_BYTES:
            break
        items.append(parse(document))
    fields: dict[str, Any] = {
        "data": items,
        "has_more": len(documents) > len(items),
        "first_id": items[0].id if items else None,
        "last_id": items[-1].id if items else None,
    }
    return Response(page_class.model_validate(fields).model_dump_json(), media_type="application/json")
