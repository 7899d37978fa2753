"""Middleware that every HTTP request passes: request id and log line, errors, HEAD and security headers."""

from __future__ import annotations

import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLIENT_CLOSED_REQUEST, build_error_response
from server.observability.metrics import Metrics
from server.observability.refusals import report_error

log = structlog.get_logger("onlyseen.server")

HEALTH_PATHS = ("/health", "/ready")  # requested every few seconds: neither counted nor logged at level info
HEAD_KEY = "onlyseen.is_head"  # in the scope of a HEAD request, for routes whose body is costly to read
SECURITY_HEADERS = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer"}


class RequestIdMiddleware:
    """Adds an x-request-id, the client's or a new one, to every response and to every log line of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client_id = Headers(scope=scope).get("x-request-id", "")
        request_id = client_id if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", client_id) else uuid4().hex
        start, status = time.perf_counter(), None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                is_health_check = scope["path"] in HEALTH_PATHS
                if not is_health_check:
                    scope["app"].state.service.metrics.responses.labels(str(status)).inc()
                write_log = log.debug if is_health_check else log.info
                seconds = round(time.perf_counter() - start, 4)
                write_log("response_sent", method=scope["method"], path=scope["path"], status=status, seconds=seconds)


class ErrorMiddleware:
    """Turns every exception of the application into OpenAI's error body, and reports it."""

    def __init__(self, app: ASGIApp, metrics: Metrics | None = None) -> None:
        """Create the middleware.

        Args:
            app: The next application.
            metrics: Count the errors; None: they are only logged.
        """
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except ClientDisconnect:
            if not has_started:
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
        except Exception as error:
            error_response = build_error_response(error)
            if error_response.spec.status == 500 or scope["path"] not in HEALTH_PATHS:
                report_error(error, error_response, self.metrics)
            if has_started:
                raise
            free_frames(error)
            await error_response.to_response()(scope, receive, send)


def free_frames(error: BaseException) -> None:
    """Drop the tracebacks of an exception and its causes.

    Tasks and futures keep exceptions in reference cycles. Without this, the frames would keep the request's body in
    memory until the garbage collector runs.
    """
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__context__


class HeadAsGetMiddleware:
    """Routes HEAD, which health checks use and FastAPI's routes lack, as GET. The HTTP server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope.get("method") == "HEAD"
        await self.app({**scope, "method": "GET", HEAD_KEY: True} if is_head else scope, receive, send)


class SecurityHeadersMiddleware:
    """Adds the security headers for browsers to every response, unless a route has set its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)
