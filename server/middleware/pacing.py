"""The pace at which requests start."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send


class PacingMiddleware:
    """Starts at most one request in each iteration of the event loop, except on the given paths.

    Hundreds of requests can arrive at one instant. Without a pace, the loop would work on all of them before it reads
    from another connection.
    """

    def __init__(self, app: ASGIApp, unpaced_paths: Collection[str] = ()) -> None:
        self.app = app
        self.unpaced_paths = frozenset(unpaced_paths)
        self._start_lock = asyncio.Lock()  # first come, first served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.unpaced_paths:
            async with self._start_lock:
                await asyncio.sleep(0)
        await self.app(scope, receive, send)
