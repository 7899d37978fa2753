"""Await work while the client of a request stays connected, and cancel it when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def run_until_disconnect(http_request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client disconnects.

    Args:
        http_request: The request, whose body has been read.
        work: Builds the response, or waits for a resource.

    Returns:
        The result of `work`.

    Raises:
        ClientDisconnect: The client disconnected first.
    """
    working, waiting = asyncio.create_task(work), asyncio.create_task(wait_for_disconnect(http_request))
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


async def wait_for_disconnect(http_request: Request) -> None:
    """Wait for the disconnect message. Before the body has been read, this would consume the body."""
    while (await http_request.receive())["type"] != "http.disconnect":
        pass
