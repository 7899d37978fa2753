"""The bounds of one request body: its size in bytes, and the time in which it arrives. All routes have them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTimeout, BodyTooLarge

MAX_DISCARDED_BYTES = 256_000_000  # read and dropped, so that a client that is still sending can read the refusal
DRAIN_TIMEOUT = 5.0  # seconds that a refused client has to finish sending, so that it reads the refusal
MIN_BYTES_PER_SECOND = 100_000  # a body gets one more second for each of these many bytes


class RequestBodyMiddleware:
    """Counts the bytes that are read, whatever the headers declare, and ends a body that arrives too slowly."""

    def __init__(self, app: ASGIApp, limit: int, timeout: float, path_limits: Mapping[str, int] | None = None) -> None:
        """Create the middleware.

        Args:
            app: The next application.
            limit: Largest body, bytes.
            timeout: Time for a body, seconds. Each `MIN_BYTES_PER_SECOND` bytes that arrive add a second.
            path_limits: Limits of single paths, bytes.
        """
        self.app = app
        self.limit = limit
        self.timeout = timeout
        self.path_limits = path_limits or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that raises `BodyTooLarge` and `BodyTimeout`."""
        limit = self.path_limits.get(scope.get("path", ""), self.limit)
        await self.app(scope, BoundedBody(receive, limit, self.timeout).receive, send)


class BoundedBody:
    """The body of one request. `receive` replaces the server's function of that name."""

    def __init__(self, receive: Receive, limit: int, timeout: float) -> None:
        self._receive = receive
        self._limit = limit
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._size = 0
        self._is_complete = False

    async def receive(self) -> Message:
        """Receive the next message.

        Returns:
            The message. After the last part of the body it is a disconnect, which has no deadline.

        Raises:
            BodyTooLarge: The body is larger than the limit. The rest of it has been read and dropped. A body that has
                not arrived in time raises `BodyTimeout`.
        """
        if self._is_complete:
            return await self._receive()
        message = await self._receive_part()
        if self._size <= self._limit:
            return message
        while not self._is_complete and self._size <= self._limit + MAX_DISCARDED_BYTES:
            await self._receive_part()
        raise BodyTooLarge(f"The body is larger than {self._limit // 1_000_000} MB.")

    async def _receive_part(self) -> Message:
        deadline = self._deadline + self._size / MIN_BYTES_PER_SECOND
        try:
            async with asyncio.timeout_at(deadline) as timeout:
                message = await self._receive()
        except TimeoutError:
            if timeout.expired():
                raise BodyTimeout("The body did not arrive in time.") from None
            raise
        self._size += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        return message


async def drain_body(receive: Receive) -> None:
    """Read and drop the rest of a body, so that the client can read a refusal."""
    with suppress(BodyTooLarge, BodyTimeout), anyio.move_on_after(DRAIN_TIMEOUT):
        while (await receive()).get("more_body", False):
            pass
