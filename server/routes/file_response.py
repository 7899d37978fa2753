"""The response with a file of the disk."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import FileResponse, JSONResponse
from starlette.types import Message, Receive, Scope, Send

from server.errors import build_router_error
from server.middleware.http import HEAD_KEY
from server.observability.refusals import report_router_error


class FileContentResponse(FileResponse):
    """Starlette's response, with OpenAI's error body for a bad Range header instead of plain text.

    A HEAD request reads nothing of the file.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: JSONResponse | None = None

        async def send_or_refuse(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                status, size = message["status"], Headers(raw=message["headers"]).get("content-range")
                headers = None if size is None else {"content-range": size}
                body = build_router_error(status, "Range")
                report_router_error(status, body.error, scope["app"].state.service.metrics)
                refusal = JSONResponse(body.model_dump(), status, headers)
            if refusal is None:
                await send(message)

        if HEAD_KEY in scope:
            scope = {**scope, "method": "HEAD"}
        await super().__call__(scope, receive, send_or_refuse)
        if refusal is not None:
            await refusal(scope, receive, send)
