"""The one error layer: whatever goes wrong becomes OpenAI's error body.

Fixed texts only: nothing of the input, no path and no traceback reaches the client.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from starlette.responses import JSONResponse

from decoding.errors import BadRequest, EngineFailed, OnlySeenError, Overloaded, Unsupported

RETRY_AFTER = 1  # seconds


class ModelNotFound(BadRequest):
    """No such model, or no such strategy behind its name."""


class NotFound(BadRequest):
    """No such file or batch, or another key's."""


class BodyTooLarge(BadRequest):
    """More bytes than the server reads."""


class WrongMediaType(BadRequest):
    """The body says that it is no JSON."""


class Unauthorized(BadRequest):
    """No API key, or one that is not known."""


class RateLimited(OnlySeenError):
    """This client has asked too often; it may ask again in `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TookTooLong(OnlySeenError):
    """The request's time is over."""


class Unavailable(OnlySeenError):
    """Not yet, or not any more: come back later."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Kind:
    status: int
    type: str
    code: str | None = None
    retry: bool = False


# The first class that fits decides.
KINDS: tuple[tuple[type[OnlySeenError], Kind], ...] = (
    (ModelNotFound, Kind(404, "invalid_request_error", "model_not_found")),
    (NotFound, Kind(404, "invalid_request_error", "not_found")),
    (Unauthorized, Kind(401, "authentication_error", "invalid_api_key")),
    (BodyTooLarge, Kind(413, "invalid_request_error", "request_too_large")),
    (WrongMediaType, Kind(415, "invalid_request_error", "unsupported_media_type")),
    (BadRequest, Kind(400, "invalid_request_error")),
    (Unsupported, Kind(400, "invalid_request_error", "unsupported")),
    (RateLimited, Kind(429, "rate_limit_error", "rate_limit_exceeded", retry=True)),
    (Overloaded, Kind(429, "rate_limit_error", "queue_full", retry=True)),
    (Unavailable, Kind(503, "server_error", "unavailable", retry=True)),
    (TookTooLong, Kind(504, "server_error", "timeout")),
    (EngineFailed, Kind(500, "server_error", "engine_failed")),
)
BROKEN = Kind(500, "server_error", "internal_error")
BROKEN_TEXT = "The server failed to answer. The failure was logged under the x-request-id of this response."


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a client is told."""

    kind: Kind
    body: ErrorBody
    retry_after: int = RETRY_AFTER

    @property
    def json(self) -> str:
        return self.body.model_dump_json()

    @property
    def response(self) -> JSONResponse:
        headers = {"retry-after": str(self.retry_after)} if self.kind.retry else {}
        if self.kind.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body.model_dump(), self.kind.status, headers)


def explain(error: BaseException) -> Explanation:
    if not isinstance(error, OnlySeenError):
        detail = ErrorDetail(message=BROKEN_TEXT, type=BROKEN.type, code=BROKEN.code)
        return Explanation(BROKEN, ErrorBody(error=detail))
    kind = next(kind for raised, kind in KINDS if isinstance(error, raised))
    detail = ErrorDetail(message=error.message, type=kind.type, param=error.param, code=error.code or kind.code)
    return Explanation(kind, ErrorBody(error=detail), getattr(error, "retry_after", RETRY_AFTER))


def http_error(status: int, param: str | None = None) -> ErrorBody:
    """For what the router refuses."""
    codes = {405: "method_not_supported"}
    texts = {404: "There is no such route. GET /openapi.json lists them.", 405: "This route has no such method."}
    return ErrorBody(
        error=ErrorDetail(
            message=texts.get(status, "The request cannot be answered." if param is None else f"{param} is not valid."),
            type="invalid_request_error",
            param=param,
            code=codes.get(status),
        )
    )
