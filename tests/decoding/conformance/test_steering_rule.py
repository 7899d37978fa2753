"""Faults of `steer` that the rule finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

from decoding.conformance.rules import RULES, apply_rule, get_rule_name
from decoding.conformance.steering_rule import check_steering
from decoding.strategy import PER_ROW, LayerPlace, SteeredLayers, Strategy, Tensors

Edit = Callable[[Tensor, float], Tensor]  # outputs and the factor -> the edited outputs
FAULTS: dict[str, tuple[Edit, str]] = {
    "dtype": (lambda outputs, factor: factor * outputs.double(), "returned torch.float64"),
    "shape": (lambda outputs, _: outputs[..., 1:], "instead of torch.float32 [4, 24]"),
    "no tensor": (lambda *_: 1, "returned int instead of a tensor"),  # type: ignore[dict-item, return-value]
    "infinite": (lambda outputs, _: outputs / 0, "returned values that are not finite"),
    "inputs": (lambda outputs, _: outputs.mul_(2), "modifies its input"),
    "batch": (lambda outputs, factor: outputs + (factor - 1) * outputs.mean(), "gives tokens of a batch other values"),
    "neutral": (lambda outputs, factor: outputs * (factor + 1), "changes outputs with neutral parameters"),
}


def build_class(edit: Edit, *layers: int) -> type[Strategy]:
    class Scaled(Strategy):
        """Scales outputs by a factor."""

        name: ClassVar[str] = "scaled"
        paper: ClassVar[str] = "none"
        neutral: ClassVar[dict[str, float]] = {"factor": 1}
        factor: Annotated[float, Field(ge=0, le=2, description="Factor.")] = 0.5

        def steered_layers(self, layers_of_model: int) -> SteeredLayers:
            return SteeredLayers(layers)

        def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
            return edit(outputs, self.factor)

    return Scaled


def test_steering_without_a_fault_keeps_all_rules() -> None:
    strategy_class = build_class(lambda outputs, factor: outputs * factor, 0)
    assert not [result for rule in RULES if (result := apply_rule(rule, strategy_class)).problems]


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_steering_is_reported(fault: str) -> None:
    edit, problem = FAULTS[fault]
    problems = apply_rule(check_steering, build_class(edit, 0)).problems
    assert any(problem in each for each in problems), problems


def test_layers_that_the_model_lacks_are_reported() -> None:
    problems = apply_rule(check_steering, build_class(lambda outputs, factor: outputs * factor, 2)).problems
    assert any("returned (2,) for a model of 2 layers" in each for each in problems), problems


def test_marked_parameter_that_is_read_is_reported() -> None:
    class Marked(build_class(lambda outputs, factor: outputs * factor, 0)):  # type: ignore[misc]
        factor: Annotated[float, Field(ge=0, le=2, description="Factor."), PER_ROW] = 0.5

    assert apply_rule(check_steering, Marked).problems == (
        "`steer` or `steered_layers` reads a parameter whose mark excludes it",
    )


def test_result_on_the_host_is_reported() -> None:
    (rule,) = [rule for rule in RULES if get_rule_name(rule) == "device"]
    problems = apply_rule(
        rule, build_class(lambda outputs, _: torch.zeros(outputs.shape, dtype=outputs.dtype), 0)
    ).problems
    assert any("`steer` returned a tensor on the host" in each for each in problems), problems
