"""Errors of a request.

OnlySeenError
├── BadRequest          the request is not valid; the message describes the correction, `param` names the field
├── Unsupported         the request is valid, but this engine or model cannot serve it
├── Overloaded          the engine has no capacity at the moment; the client may try again later
└── EngineFailed        a failure for the operator
    └── StrategyFailed  a failure for the author of the strategy
"""

from __future__ import annotations

import structlog

NO_FINISH_REASON = "The engine ended an answer without a finish reason."
MAX_SHOWN_NAME = 64  # characters of a client's name for a field that a message repeats

log = structlog.get_logger(__name__)


class OnlySeenError(Exception):
    """Base class. `message` is for the client: it contains no path of the server, memory address or traceback.

    An error that stops the start can name local files and packages. No client receives it.

    Args:
        message: One sentence.
        param: Request field, dotted.
        code: Machine-readable code, instead of the default of the class.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class BadRequest(OnlySeenError):
    """The request is not valid."""


class Unsupported(OnlySeenError):
    """This engine, or the model it runs, lacks a capability that the request needs."""


class Overloaded(OnlySeenError):
    """The engine's queue is full."""


class EngineFailed(OnlySeenError):
    """The engine failed. The client may send the request again."""


class StrategyFailed(EngineFailed):
    """A strategy raised an exception or returned something invalid.

    The message of an exception may hold data of a request, so that only its type belongs into the problem.

    Args:
        strategy: Name of the strategy.
        problem: Verb phrase, as in "returned nan logits".
    """

    def __init__(self, strategy: str, problem: str) -> None:
        super().__init__(f"Strategy '{strategy}' {problem}.")
        self.strategy = strategy
        self.problem = problem

    def __reduce__(self) -> tuple[type[StrategyFailed], tuple[str, str]]:
        return type(self), (self.strategy, self.problem)


def to_public_error(error: Exception, event: str) -> OnlySeenError:
    """Turn any exception into an error for the client, and log it with its traceback unless the client caused it.

    Args:
        error: Exception.
        event: Log event. That of a `StrategyFailed` is always "strategy_failed".

    Returns:
        The error itself if its message is for the client, or an `EngineFailed` without details.
    """
    if isinstance(error, StrategyFailed):
        log.error("strategy_failed", strategy=error.strategy, exc_info=error)
    elif not isinstance(error, OnlySeenError):
        log.error(event, exc_info=error)
    return error if isinstance(error, OnlySeenError) else EngineFailed("The engine failed on this request.")
