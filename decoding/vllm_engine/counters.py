"""What the scheduler did with its gangs, for /metrics and for tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Since the start. `violations` stays 0; if it does not, the tokens were drawn again or the ask has failed."""

    steps: int = 0  # with a gang in the engine
    tokens: int = 0  # drawn by whole gangs, one per gang and step
    holds: int = 0  # times a member waited at its last known token for the others
    alone: int = 0  # steps that a gang had for itself
    preemptions: int = 0  # of gangs, each as a whole
    others_preempted: int = 0  # requests without branches, by our plan
    stock_preemptions: int = 0  # by vLLM's own loop, which our plan should leave nothing to preempt
    violations: int = 0  # members that drew a token without the others
    redone: int = 0  # of those, tokens dropped and drawn again
    failed: int = 0  # asks whose strategy raised, or whose gang could not be kept together

    def told(self) -> dict[str, int]:
        return asdict(self)
