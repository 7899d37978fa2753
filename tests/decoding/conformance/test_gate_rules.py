"""Faults of `gate_heads` that the rules find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

from decoding.conformance.rules import RULES, apply_rule, get_rule_name
from decoding.strategy import AttentionKeys, Strategy, Tensors

Gate = Callable[[Tensor, float], Tensor]  # scores and the factor -> the gates
FAULTS: dict[str, tuple[Gate, str, str]] = {
    "dtype": (lambda scores, _: torch.ones_like(scores[..., 0]).double(), "layout-kept", "returned torch.float64 [6]"),
    "infinite": (lambda scores, _: scores[..., 0] / 0, "values", "returned values that are not finite"),
    "inputs": (lambda scores, _: scores.mul_(2)[..., 0], "inputs-unchanged", "modifies its input"),
    "batch": (lambda scores, _: scores[..., 0] - scores.mean(), "batch", "gives rows of a batch other values than"),
    "neutral": (lambda scores, factor: torch.full_like(scores[..., 0], factor + 1), "neutral", "scales heads with"),
    "device": (lambda scores, _: torch.ones(scores.shape[:-1]), "device", "returned a tensor on the host"),
}


def build_class(gate: Gate) -> type[Strategy]:
    class Gated(Strategy):
        """Scales heads by a factor."""

        name: ClassVar[str] = "gated"
        paper: ClassVar[str] = "none"
        neutral: ClassVar[dict[str, float]] = {"factor": 1}
        factor: Annotated[float, Field(ge=0, le=2, description="Factor.")] = 0.5

        def gate_heads(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
            return gate(scores, self.factor)

    return Gated


def test_gates_without_a_fault_keep_all_rules() -> None:
    strategy_class = build_class(lambda scores, factor: torch.full_like(scores[..., 0], factor))
    assert not [result for rule in RULES if (result := apply_rule(rule, strategy_class)).problems]


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_gates_are_reported(fault: str) -> None:
    gate, name, problem = FAULTS[fault]
    (rule,) = [rule for rule in RULES if get_rule_name(rule) == name]
    problems = apply_rule(rule, build_class(gate)).problems
    assert any(problem in each and "gate_heads" in each for each in problems), problems
