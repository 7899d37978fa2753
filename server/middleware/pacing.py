"""One request at a time in each iteration of the event loop, so that the loop reads all connections in between."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send


class LoopPacer:
    """Lets one task pass in each iteration of the event loop, first come, first served."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def wait_for_turn(self) -> None:
        """Wait until no other task passes in this iteration."""
        async with self._lock:
            await asyncio.sleep(0)


class PacingMiddleware:
    """Starts at most one request in each iteration of the event loop, except on the given paths.

    Hundreds of requests can arrive at one instant. Without a pace, the loop would work on all of them before it reads
    from another connection.
    """

    def __init__(self, app: ASGIApp, unpaced_paths: Collection[str] = ()) -> None:
        self.app = app
        self.unpaced_paths = frozenset(unpaced_paths)
        self._pacer = LoopPacer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.unpaced_paths:
            await self._pacer.wait_for_turn()
        await self.app(scope, receive, send)
