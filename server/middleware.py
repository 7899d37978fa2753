"""What every request passes, as plain ASGI: a request id and a log line, the error layer, the body limit."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, explain

log = structlog.get_logger("onlyseen.server")

PROBED = ("/health", "/ready")  # every few seconds, by machines
DISCARD = 256_000_000  # bytes read and dropped so that a client which is still sending can read the refusal


class RequestId:
    """Takes the client's x-request-id, or draws one; says it on every answer and in every log line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", given) else uuid4().hex
        began, status = time.perf_counter(), None

        async def echo(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = identity
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=identity):
            try:
                await self.app(scope, receive, echo)
            finally:
                if scope["path"] not in PROBED:
                    scope["app"].state.service.metrics.responses.labels(str(status)).inc()
                say = log.debug if scope["path"] in PROBED else log.info
                seconds = round(time.perf_counter() - began, 4)
                say("answered", method=scope["method"], path=scope["path"], status=status, seconds=seconds)


class ErrorLayer:
    """Whatever the application raises is answered with OpenAI's error body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = False

        async def watch(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            explanation = explain(error)
            if explanation.kind.status == 500:
                log.error("failed", code=explanation.body.error.code, exc_info=error)
            if began:
                raise
            await explanation.response(scope, receive, send)


class HeadAsGet:
    """FastAPI's routes know no HEAD, which probes like to use. The server that sends the answer leaves out its body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


class BodyLimit:
    """Counts what is read, whatever the headers say."""

    def __init__(self, app: ASGIApp, limit: int, larger: Mapping[str, int] | None = None) -> None:
        """`larger`: path -> its own limit."""
        self.app = app
        self.limit = limit
        self.larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen, limit = 0, self.larger.get(scope.get("path", ""), self.limit)

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen <= limit:
                return message
            while message.get("more_body", False) and seen <= limit + DISCARD:
                message = await receive()
                seen += len(message.get("body", b""))
            raise BodyTooLarge(f"The body is larger than {limit // 1_000_000} MB.")

        await self.app(scope, counted, send)
