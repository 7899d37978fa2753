"""The format of the server's log: readable lines on a terminal, one JSON object a line elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, Literal, TextIO, get_origin

import structlog
from pydantic import BaseModel

MAX_LOGGED_CHARACTERS = 500  # of one value


def configure_logging() -> None:
    """Configure structlog. Tracebacks omit local variables, which hold the text of requests."""
    is_terminal = sys.stderr.isatty()
    renderers: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=write_traceback)]
        if is_terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            escape_texts,
            structlog.processors.TimeStamper(fmt="iso"),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def write_traceback(stream: TextIO, exception: structlog.typing.ExcInfo) -> None:
    """Write a traceback without local variables, whose lines have no unprintable character."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exception)
    stream.write("\n".join(map(escape, text.getvalue().split("\n"))))


def escape_texts(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape unprintable characters, which control a terminal, and shorten long texts. A client chooses some of them.

    Returns:
        The event, whose values of other types are unchanged.
    """
    return {key: escape(value) if isinstance(value, str) else value for key, value in event.items()}


def escape(text: str) -> str:
    """Return the first `MAX_LOGGED_CHARACTERS` of a text, with escape sequences for unprintable characters."""
    shown = text[:MAX_LOGGED_CHARACTERS]
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in shown)


def describe_parameters(strategy: BaseModel) -> dict[str, Any]:
    """Return the parameters of a strategy for the log. A free text of the client is replaced by its length."""
    fields = type(strategy).model_fields
    return {
        name: value if name in fields and get_origin(fields[name].annotation) is Literal else hide_texts(value)
        for name, value in strategy.model_dump(mode="json").items()
    }


def hide_texts(value: Any) -> Any:
    """Replace each text in a JSON value by its length."""
    if isinstance(value, str):
        return f"<{len(value)} characters>"
    if isinstance(value, list):
        return [hide_texts(each) for each in value]
    if isinstance(value, dict):
        return {name: hide_texts(each) for name, each in value.items()}
    return value
