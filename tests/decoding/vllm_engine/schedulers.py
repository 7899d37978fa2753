"""Schedulers for tests. Only vLLM's engine core imports them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from decoding.vllm_engine.core.gangs import VllmRequest
from decoding.vllm_engine.core.scheduler import GangScheduler, Unit
from tests.decoding.failing_strategy import register


class FaultyScheduler(GangScheduler):
    """Breaks the lockstep: it withholds one member of a gang in a tenth of its steps."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._random = random.Random(0)

    def _find_members_to_release(self, unit: Unit) -> Sequence[VllmRequest]:
        if len(unit) > 1 and self._random.random() < 0.1:
            withheld = self._random.randrange(len(unit))
            return [request for number, request in enumerate(unit) if number != withheld]
        return unit


class RegisteringScheduler(GangScheduler):
    """Registers the failing strategy in the engine core."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        register()
        super().__init__(*args, **kwargs)
