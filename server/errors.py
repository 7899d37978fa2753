"""Errors of the server, and their form in OpenAI's error body.

A message may repeat short parts of the request: names of fields, models and strategies, and a special token. It may
also repeat the value that a library refuses (pydantic, llguidance, vLLM, the model's processor). Unknown names of
fields are cut to 64 characters. A message never holds a traceback or a path of the server. An exception that is not the
project's own gets a fixed message.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from starlette.responses import JSONResponse

from decoding.errors import BadRequest, EngineFailed, OnlySeenError, Overloaded, Unsupported

RETRY_AFTER = 1  # seconds
STORE_RETRY_AFTER = 5  # seconds
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that has disconnected; only the log shows it


class ModelNotFound(BadRequest):
    """The model does not exist, or its suffix is no strategy."""


class NotFound(BadRequest):
    """The file or batch does not exist, or belongs to another API key."""


class BodyTooLarge(BadRequest):
    """The body has more bytes than the server reads."""


class BodyTimeout(BadRequest):
    """The body has not arrived in time."""


class UnsupportedMediaType(BadRequest):
    """The Content-Type is not the one that the route reads."""


class StorageFull(BadRequest):
    """The files would exceed the bound on their bytes."""


class Unauthorized(BadRequest):
    """The API key is missing or unknown."""


class Forbidden(BadRequest):
    """The API key does not open this route, or a page of another site has sent the request."""


class RateLimited(OnlySeenError):
    """The API key has reached its rate limit. The next request is allowed in `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestTimeout(OnlySeenError):
    """The request has used up its time."""


class ServiceUnavailable(OnlySeenError):
    """The server is not ready yet, or no longer. The client can retry later."""


class StoreFailed(ServiceUnavailable):
    """The files or the database cannot be read or written. The client can retry later."""

    retry_after = STORE_RETRY_AFTER


class ErrorDetail(BaseModel):
    """An error as OpenAI's API describes it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """The HTTP status, type and default code of an error class, and whether clients should retry it."""

    status: int
    type: str
    code: str | None = None
    retry: bool = False


# The first matching class decides.
ERROR_SPECS: tuple[tuple[type[OnlySeenError], ErrorSpec], ...] = (
    (ModelNotFound, ErrorSpec(404, "invalid_request_error", "model_not_found")),
    (NotFound, ErrorSpec(404, "invalid_request_error", "not_found")),
    (Unauthorized, ErrorSpec(401, "authentication_error", "invalid_api_key")),
    (Forbidden, ErrorSpec(403, "permission_error", "forbidden")),
    (BodyTooLarge, ErrorSpec(413, "invalid_request_error", "request_too_large")),
    (BodyTimeout, ErrorSpec(408, "invalid_request_error", "body_timeout")),
    (UnsupportedMediaType, ErrorSpec(415, "invalid_request_error", "unsupported_media_type")),
    (StorageFull, ErrorSpec(400, "invalid_request_error", "storage_full")),
    (BadRequest, ErrorSpec(400, "invalid_request_error")),
    (Unsupported, ErrorSpec(400, "invalid_request_error", "unsupported")),
    (RateLimited, ErrorSpec(429, "rate_limit_error", "rate_limit_exceeded", retry=True)),
    (Overloaded, ErrorSpec(429, "rate_limit_error", "queue_full", retry=True)),
    (StoreFailed, ErrorSpec(503, "server_error", "storage_unavailable", retry=True)),
    (ServiceUnavailable, ErrorSpec(503, "server_error", "unavailable", retry=True)),
    (RequestTimeout, ErrorSpec(504, "server_error", "timeout")),
    (EngineFailed, ErrorSpec(500, "server_error", "engine_failed")),
)
INTERNAL_ERROR = ErrorSpec(500, "server_error", "internal_error")
INTERNAL_ERROR_MESSAGE = "The server failed to answer. The log has the failure under the x-request-id of this response."


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The response to an exception."""

    spec: ErrorSpec
    body: ErrorBody
    retry_after: int = RETRY_AFTER

    def to_json(self) -> str:
        return self.body.model_dump_json()

    def to_response(self) -> JSONResponse:
        headers = {"retry-after": str(self.retry_after)} if self.spec.retry else {}
        if self.spec.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body.model_dump(), self.spec.status, headers)


def build_error_response(error: BaseException) -> ErrorResponse:
    """Build the response to an exception. Exceptions that are not the project's own get a fixed text."""
    if not isinstance(error, OnlySeenError):
        detail = ErrorDetail(message=INTERNAL_ERROR_MESSAGE, type=INTERNAL_ERROR.type, code=INTERNAL_ERROR.code)
        return ErrorResponse(INTERNAL_ERROR, ErrorBody(error=detail))
    spec = next(spec for error_class, spec in ERROR_SPECS if isinstance(error, error_class))
    detail = ErrorDetail(message=error.message, type=spec.type, param=error.param, code=error.code or spec.code)
    return ErrorResponse(spec, ErrorBody(error=detail), getattr(error, "retry_after", RETRY_AFTER))


def build_router_error(status: int, param: str | None = None) -> ErrorBody:
    """Build the body of an error that FastAPI's router raises.

    Args:
        status: HTTP status.
        param: Path or query parameter that is not valid.

    Returns:
        The error body.
    """
    codes = {405: "method_not_supported"}
    texts = {404: "There is no such route. GET /openapi.json lists all routes.", 405: "This route has no such method."}
    return ErrorBody(
        error=ErrorDetail(
            message=texts.get(status, "The request cannot be answered." if param is None else f"{param} is not valid."),
            type="invalid_request_error",
            param=param,
            code=codes.get(status),
        )
    )
