"""Exceptions of the evaluation.

EvaluationError
├── InputError              a file that cannot be scored; the message names file, line and field
├── ServerError             the server cannot be evaluated, or has not the requested model or strategy
│   ├── RequestRejected         the server refuses the request; a retry cannot succeed
│   └── ServerUnavailable       down, slow, overloaded or failing; a retry may succeed
│       └── InvalidResponse         the response is not a usable completion
└── RunError                a run that cannot continue, be merged or be scored again
"""

from __future__ import annotations

from pathlib import Path


class EvaluationError(Exception):
    """An error that the command line prints as one line, without a traceback."""


class InputError(EvaluationError):
    """A file that cannot be read or scored.

    Args:
        problem: The problem in words.
        file: The file or folder.
        line: Line number, counted from 1. None for a file that is one JSON value.
        field: Path of JSON keys, such as `annotations[3].image_id`.
    """

    def __init__(self, problem: str, file: Path | str, line: int | None = None, field: str | None = None) -> None:
        place = f"{file}" if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {problem}" if field is None else f'{place}: field "{field}": {problem}')
        self.problem, self.file, self.line, self.field = problem, Path(file), line, field


class ServerError(EvaluationError):
    """The server cannot be evaluated, or has not the requested model or strategy."""


class RequestRejected(ServerError):
    """The server refuses the request with a status that a retry cannot change.

    Args:
        status: The HTTP status.
        message: The server's error message.
        param: The field that the server names.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(f"the server rejects the request with status {status}: {message}")
        self.status, self.param = status, param


class ServerUnavailable(ServerError):
    """The server is down, slow, overloaded or failing.

    Args:
        problem: The problem in words.
        retry_after: Seconds to wait before the next attempt, from the Retry-After header.
        status: The HTTP status, None without a response.
    """

    def __init__(self, problem: str, retry_after: float = 0.0, status: int | None = None) -> None:
        super().__init__(problem)
        self.retry_after, self.status = retry_after, status


class InvalidResponse(ServerUnavailable):
    """The response is not a usable completion."""


class RunError(EvaluationError):
    """A run that cannot continue, be merged or be scored again."""
