"""A scheduler that does wrong, to show that the engine notices and mends it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from decoding.vllm_engine.gangs import Request
from decoding.vllm_engine.scheduler import GangScheduler, Unit


class Forgetful(GangScheduler):
    """Leaves one member of a gang behind in a tenth of its steps."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        self._dice = random.Random(0)

    def _departing(self, unit: Unit) -> Sequence[Request]:
        if len(unit) > 1 and self._dice.random() < 0.1:
            left_behind = self._dice.randrange(len(unit))
            return [request for number, request in enumerate(unit) if number != left_behind]
        return unit
