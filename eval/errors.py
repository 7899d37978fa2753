"""What stops an evaluation.

EvaluationError
├── InputError      a file that cannot be scored: says which file, line and field
├── ServerError     the server cannot be measured, or is not what was asked for
│   ├── Refused         it understood and will not
│   └── Unavailable     down, slow, overloaded or broken: another attempt may work
│       └── Nonsense        an answer that is none
└── RunError        a run that cannot go on, be joined or be scored again
"""

from __future__ import annotations

from pathlib import Path


class EvaluationError(Exception):
    """Shown to the user as one line, without a traceback."""


class InputError(EvaluationError):
    def __init__(self, problem: str, file: Path | str, line: int | None = None, field: str | None = None) -> None:
        """`line` counts from 1, and is left out for a file that is one JSON value; `field` is a path of keys."""
        place = f"{file}" if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {problem}" if field is None else f'{place}: field "{field}": {problem}')
        self.problem, self.file, self.line, self.field = problem, Path(file), line, field


class ServerError(EvaluationError):
    pass


class Refused(ServerError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the server refuses with {status}: {message}")
        self.status = status


class Unavailable(ServerError):
    def __init__(self, problem: str, retry_after: float = 0.0) -> None:
        """`retry_after` is in seconds."""
        super().__init__(problem)
        self.retry_after = retry_after


class Nonsense(Unavailable):
    pass


class RunError(EvaluationError):
    pass
