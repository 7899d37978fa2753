"""What was done for a request, told on every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from decoding.answer import Usage

if TYPE_CHECKING:
    from decoding.strategy import Strategy


class Receipt(BaseModel):
    """With n > 1 the counts add up over the choices, and of the timings the slowest choice counts."""

    strategy: str = Field(description="Outermost first, joined by '+'.")
    parameters: dict[str, dict[str, Any]] = Field(description="Of every strategy, defaults included.")
    branches: list[str] = Field(description="Prompts that ran beside the main one, one row a step each.")
    steps: int = Field(description="Tokens generated.")
    forward_passes: int = Field(description="Rows run through the model, prompts and questions on the way included.")
    changed_steps: int | None = Field(
        description="Steps whose likeliest token the strategy changed; null where it acts inside the model."
    )
    timings: dict[str, float] = Field(description="Seconds by phase; total is the server's, from the parsed request.")
    pictures: dict[str, list[str]] | None = Field(
        default=None,
        description="Where decoding.trace asked for it: the edited pictures that branches saw, as data URLs of PNGs.",
    )


def receipt(
    stack: tuple[Strategy, ...], branches: Sequence[str], spent: Usage, choices: Sequence[Usage], total: float
) -> Receipt:
    """`spent` is what the questions on the way have cost."""
    from decoding.registry import label

    changed = [usage.changed_steps for usage in choices]
    return Receipt(
        strategy=label(stack),
        parameters={strategy.name: strategy.model_dump(mode="json") for strategy in stack},
        branches=list(branches),
        steps=sum(usage.steps for usage in choices),
        forward_passes=spent.forward_passes + sum(usage.forward_passes for usage in choices),
        changed_steps=None if None in changed else sum(count or 0 for count in changed),
        timings=rounded({**spent.seconds, **slowest(choices), "total": total}),
    )


def slowest(choices: Sequence[Usage]) -> dict[str, float]:
    phases = {phase for usage in choices for phase in usage.seconds}
    return {phase: max(usage.seconds.get(phase, 0.0) for usage in choices) for phase in sorted(phases)}


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(value, 6) for phase, value in seconds.items()}
