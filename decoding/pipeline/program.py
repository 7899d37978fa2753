"""Run the text side of one strategy, step by step, and check its effects and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, get_args

import structlog

from decoding.drafts import ReadDraft, SendTokens, StartDraft
from decoding.errors import OnlySeenError, StrategyFailed
from decoding.outputs import Answer, FinishReason
from decoding.requests import GenerateRequest, ProbeRequest, RelevanceRequest, VectorsRequest
from decoding.strategy import Strategy

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """Return value of a program. A StopIteration cannot cross a thread's future."""

    outcome: Any


class StrategyProgram:
    """A started `Strategy.run`. Its requests get qualified names and their strategy before an engine sees them."""

    def __init__(self, strategy: Strategy, request: GenerateRequest) -> None:
        self.strategy = strategy
        self._request = request
        self._program: Generator[Any, Any, Any] | None = None

    def advance(self, reply: Any) -> Any:
        """Send the reply to the last request. The first reply is None.

        Raises:
            OnlySeenError: The strategy refuses the request, or needs an image that the prompt lacks.
            StrategyFailed: The strategy raises another exception, or yields or returns something else than a request.

        Returns:
            The next effect, or `ProgramResult`.
        """
        try:
            if self._program is None:
                self._program = self._start()
            effect = self._program.send(reply)
        except StopIteration as stop:
            return ProgramResult(self._qualify_outcome(stop.value))
        except OnlySeenError:
            raise
        except Exception as error:
            raise StrategyFailed(self.strategy.name, f"failed: {type(error).__name__}") from error
        return self._qualify_effect(effect)

    def close(self) -> None:
        """End the program. Its `finally` blocks run."""
        if self._program is not None:
            self._program.close()

    def _create_program(self) -> Any:
        return self.strategy.run(self._request)

    def _start(self) -> Generator[Any, Any, Any]:
        if self.strategy.needs_images:
            self._request.prompt.require_images(self.strategy.name)
        program = self._create_program()
        if not isinstance(program, Generator):
            raise StrategyFailed(
                self.strategy.name, f"returned {type(program).__name__} from its text side, which must be a generator"
            )
        return program

    def _qualify_effect(self, effect: Any) -> Any:
        if isinstance(effect, GenerateRequest | ProbeRequest):
            return effect.with_strategy(self.strategy)
        if isinstance(effect, RelevanceRequest | VectorsRequest):
            return effect
        if isinstance(effect, list) and all(isinstance(each, GenerateRequest) for each in effect):
            return [each.with_strategy(self.strategy) for each in effect]
        raise StrategyFailed(self.strategy.name, f"yielded {type(effect).__name__} instead of a request")

    def _qualify_outcome(self, outcome: Any) -> Any:
        if isinstance(outcome, GenerateRequest):
            return outcome.with_strategy(self.strategy)
        if isinstance(outcome, Answer):
            return outcome
        raise StrategyFailed(
            self.strategy.name, f"returned {type(outcome).__name__} instead of a GenerateRequest or an Answer"
        )


class DraftStrategyProgram(StrategyProgram):
    """A started `Strategy.stream`."""

    def _create_program(self) -> Any:
        return self.strategy.stream(self._request)

    def _qualify_effect(self, effect: Any) -> Any:
        return effect if isinstance(effect, StartDraft | ReadDraft | SendTokens) else super()._qualify_effect(effect)

    def _qualify_outcome(self, outcome: Any) -> Any:
        if outcome not in get_args(FinishReason):
            raise StrategyFailed(self.strategy.name, f"returned {outcome!r} from `stream` instead of a finish reason")
        return outcome


def start_program(strategy: Strategy, request: GenerateRequest) -> StrategyProgram:
    """Start the text side that a strategy overrides: `stream`, or `run`."""
    return (DraftStrategyProgram if strategy.overrides_stream() else StrategyProgram)(strategy, request)


async def advance_program(program: StrategyProgram, reply: Any) -> Any:
    """Advance a program in a thread: strategies edit images and read text between their requests.

    A cancelled request does not wait for the thread. If the program raises, or the request is cancelled, the program is
    closed once the thread is done with it.

    Returns:
        The next effect, or `ProgramResult`.
    """
    step = asyncio.ensure_future(asyncio.to_thread(program.advance, reply))
    try:
        return await asyncio.shield(step)
    except BaseException as error:
        if isinstance(error, StrategyFailed):
            log.warning("strategy_failed", strategy=program.strategy.name, exc_info=error)
        close_program(program, step)
        raise


def close_program(program: StrategyProgram, step: asyncio.Future[Any]) -> None:
    """Close a program once its thread is done with it."""

    def close_later(done: asyncio.Future[Any]) -> None:
        if not done.cancelled():
            done.exception()  # retrieved, so that asyncio does not report it as unhandled
        program.close()

    if step.done():
        program.close()
    else:
        step.add_done_callback(close_later)
