"""The bounds of one large response: its parts, its share of the memory, and the time in which its client reads it."""

from __future__ import annotations

import asyncio

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.middleware.body_budget import BodyBudget, BudgetedBody
from server.middleware.request_body import MIN_BYTES_PER_SECOND

PART_BYTES = 65_536  # sent at once
READ_TIMEOUT = 60.0  # seconds to read a response, in addition to one for each `MIN_BYTES_PER_SECOND` bytes

log = structlog.get_logger("onlyseen.server")


class ResponseBodyMiddleware:
    """Sends large bodies in parts, so that a request lasts until its client has read all but the last part.

    The HTTP server takes a body of any size at once. Its bytes would wait in the buffer of the connection after the
    request has ended. Smaller bodies are passed on as they are.
    """

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        """Create the middleware.

        Args:
            app: The next application.
            budget: The memory for responses that are sent in parts.
        """
        self.app = app
        self.budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None

        async def send_in_parts(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # A body that does not fit the memory is refused with another status.
                return
            body, more_body = message.get("body", b""), message.get("more_body", False)
            if start is not None and not more_body and len(body) > PART_BYTES:
                owner = scope.get("state", {}).get("owner", "")
                response = BudgetedResponse(self.budget, owner, len(body))
                head, start = start, None
                await response.send(head, body, send)
                return
            if start is not None:
                head, start = start, None
                await send(head)
            # `SEND_TIMEOUT` bounds the time for an event of a stream, so that its parts need no deadline of their own.
            last = max(0, len(body) - 1) // PART_BYTES * PART_BYTES
            for position in range(0, last, PART_BYTES):
                part = body[position : position + PART_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({**message, "body": body[last:]} if last else message)

        await self.app(scope, receive, send_in_parts)


class BudgetedResponse(BudgetedBody):
    """The complete body of one response while its client reads it."""

    def __init__(self, budget: BodyBudget, owner: str, size: int) -> None:
        """Count the body. `BodyBudget.make_room` raises `Overloaded` if it does not fit.

        Args:
            budget: The memory for responses.
            owner: Hash of the API key.
            size: Bytes. A body of a key that has no other one in memory always fits.
        """
        super().__init__(budget, owner)
        self.add_bytes(size, makes_room=bool(budget.bytes_by_owner[owner]))

    async def send(self, start: Message, content: bytes, send: Send) -> None:
        """Send the response, and return the memory.

        Args:
            start: The message with its status and headers.
            content: The body.
            send: Sends a message, when the client has read most of the earlier ones.

        Raises:
            ClientDisconnect: The client reads too slowly, or another response needs the memory. The connection is
                closed.
            TimeoutError: `send` raised it.
        """
        self._budget.unfinished.add(self)
        deadline, sent = asyncio.get_running_loop().time() + READ_TIMEOUT, 0
        try:
            async with self._timeout:
                self._timeout.reschedule(deadline)
                await send(start)
                while sent < len(content):
                    part = content[sent : sent + PART_BYTES]
                    more_body = sent + len(part) < len(content)
                    await send({"type": "http.response.body", "body": part, "more_body": more_body})
                    sent += len(part)
                    if not self._is_refused:
                        self.note_progress(len(part))
                        self._timeout.reschedule(deadline + sent / MIN_BYTES_PER_SECOND)
        except TimeoutError:
            if not self._timeout.expired():
                raise
            log.warning("response_not_read", bytes=len(content), sent=sent)
            raise ClientDisconnect from None
        finally:
            self._budget.unfinished.discard(self)
            self.release()
