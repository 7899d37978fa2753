"""The time that a request has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from server.errors import TookTooLong


@asynccontextmanager
async def until(deadline: float) -> AsyncGenerator[None, None]:
    """What is done in it ends by then, of the event loop's clock.

    Raises:
        TookTooLong: it would not have.
    """
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise TookTooLong("The answer was not ready within the time that this server gives a request.") from None
        raise
