"""Error responses in the log and in the metrics: code, field and message, without the content of requests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import structlog

from server.errors import ErrorDetail, ErrorResponse, StoreFailed

if TYPE_CHECKING:
    from server.observability.metrics import Metrics

log = structlog.get_logger("onlyseen.server")

MAX_LOGGED_PARAM = 200  # characters
MAX_SUFFIX = 2000  # characters at the end of a message that are searched for the end of a quotation
LIBRARY_CODES = ("invalid_schema",)  # their messages end with the text of a library, which can repeat the request
OPENING_QUOTE = re.compile(r"(?<!\w)['\"`]")
CLOSING_QUOTE = re.compile(r"['\"`](?!\w)")
OMITTED = "'...'"


def report_error(
    error: BaseException, response: ErrorResponse, metrics: Metrics | None, *, prefix: str = "request"
) -> None:
    """Log an error response, and count it by its code.

    Args:
        error: The exception. A failure of the server is logged with its traceback.
        response: The response to it.
        metrics: Count the response; None: it is only logged.
        prefix: Begin of the names of the log events.
    """
    detail, status = response.body.error, response.spec.status
    if metrics is not None:
        metrics.count_error(status, detail.code or detail.type)
    if status == 500 or isinstance(error, StoreFailed):
        log.error(f"{prefix}_failed", status=status, code=detail.code, exc_info=error)
    else:
        log_refusal(f"{prefix}_refused", status, detail, hide_content(error, detail))


def report_router_error(status: int, detail: ErrorDetail, metrics: Metrics) -> None:
    """Log and count an error of FastAPI's router, whose message has nothing of the request but a parameter's name."""
    metrics.count_error(status, detail.code or detail.type)
    log_refusal("request_refused", status, detail, detail.message)


def log_refusal(event: str, status: int, detail: ErrorDetail, message: str) -> None:
    """Log a refusal, with a message that has no content of the request."""
    param = None if detail.param is None else detail.param[:MAX_LOGGED_PARAM]
    log.info(event, status=status, code=detail.code, param=param, message=message)


def hide_content(error: BaseException, detail: ErrorDetail) -> str:
    """Return the message of an error for the log, without what it repeats of the request.

    A message repeats content of a request between quotation marks, or as the text of a library after a colon. A text of
    the client can have quotation marks, too, so that all from the first mark to the last one is omitted.

    Args:
        error: The error. A cause means that the message ends with the text of a library.
        detail: The response to it.

    Returns:
        The message with a mark in the place of what is omitted.
    """
    message = detail.message
    if error.__cause__ is not None or detail.code in LIBRARY_CODES:
        prefix, colon, _ = message.partition(": ")
        message = f"{prefix}{colon}{OMITTED}" if colon else prefix
    opening = OPENING_QUOTE.search(message)
    if opening is None:
        return message
    start = max(opening.end(), len(message) - MAX_SUFFIX)  # a text of the client can have millions of marks
    end = max((closing.end() for closing in CLOSING_QUOTE.finditer(message, start)), default=len(message))
    return f"{message[: opening.start()]}{OMITTED}{message[end:]}"
