"""Schedulers for tests. Only vLLM's engine core imports them."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from decoding.vllm_engine.core.async_scheduler import GangAsyncScheduler
from decoding.vllm_engine.core.gangs import VllmRequest
from decoding.vllm_engine.core.scheduler import GangScheduler, RequestGroup
from decoding.vllm_engine.worker.head_tap import GangHeadTap
from decoding.vllm_engine.worker.step_hook_runner import SamplerHookRunner
from decoding.vllm_engine.worker.step_rows import StepRows
from tests.decoding.failing_strategy import register


class FaultyScheduler(GangScheduler):
    """Breaks the lockstep: it withholds one member of a gang in a tenth of its steps."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._random = random.Random(0)

    def _find_members_to_release(self, unit: RequestGroup) -> Sequence[VllmRequest]:
        if len(unit) > 1 and self._random.random() < 0.1:
            withheld = self._random.randrange(len(unit))
            return [request for number, request in enumerate(unit) if number != withheld]
        return unit


class FaultyAsyncScheduler(FaultyScheduler, GangAsyncScheduler):
    """Breaks the lockstep under asynchronous scheduling."""


class RegisteringScheduler(GangScheduler):
    """Registers the failing strategy in the engine core, and lets the engine's own code fail beside it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        register()
        for owner, method in FAULTS:
            raise_for_marked_rows(owner, method)
        super().__init__(*args, **kwargs)


FAULTS = (
    (GangHeadTap, "before_forward"),
    (GangHeadTap, "after_forward"),
    (SamplerHookRunner, "before_sampling"),
    (SamplerHookRunner, "after_sampling"),
)


def raise_for_marked_rows(owner: type, method: str) -> None:
    """Let a method raise, after its work, in steps with a `FailingStrategy` whose hook is the method's name."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def raising(self: object, rows: StepRows, *args: object) -> object:
        result = original(self, rows, *args)
        if any(f'"{method}"' in spec.parameters for member in rows.members.values() for spec in member.stack):
            raise RuntimeError("/some/path")
        return result

    setattr(owner, method, raising)
