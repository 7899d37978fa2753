"""Who may come in: no more requests than the engine has rows and places in its queue, counted from their first byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Request

from decoding.errors import Overloaded
from server.errors import Unavailable
from server.guard import drain
from server.service import STOPPING, Service, TheService


async def entry(request: Request, service: TheService) -> AsyncGenerator[Service, None]:
    """Held until the last byte of the answer has been sent.

    Raises:
        Unavailable: the server is stopping.
        Overloaded: the queue is full. Nothing of the body has been looked at.
    """
    if service.is_leaving:
        await drain(request.receive)
        raise Unavailable(STOPPING)
    settings = service.settings
    most = settings.rows + settings.max_waiting  # each request needs one at least
    if service.ready_engine.is_full or service.inside >= most:
        await drain(request.receive)
        raise Overloaded("The queue is full; try again in a moment.", code="queue_full")
    service.inside += 1
    try:
        yield service
    finally:
        service.inside -= 1


Entered = Annotated[Service, Depends(entry)]
