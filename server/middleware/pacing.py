"""The pace at which requests start."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

QUICK_STARTS = 16  # requests for quick paths that start in each iteration


class PacingMiddleware:
    """Starts one request in each iteration of the event loop, and a few more for quick paths.

    Hundreds of requests can arrive at one instant. Without a pace, the loop would work on all of them before it reads
    from another connection. Requests for quick paths do not wait for others.
    """

    def __init__(self, app: ASGIApp, quick_paths: Collection[str] = ()) -> None:
        self.app = app
        self.quick_paths = frozenset(quick_paths)
        # First come, first served.
        self._starts = asyncio.Semaphore(1)
        self._quick_starts = asyncio.Semaphore(QUICK_STARTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            async with self._quick_starts if scope["path"] in self.quick_paths else self._starts:
                await asyncio.sleep(0)
        await self.app(scope, receive, send)
