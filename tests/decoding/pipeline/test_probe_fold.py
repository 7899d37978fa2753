"""Tests of the fold of a probe, which both engines call in each layer."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from decoding.errors import StrategyFailed
from decoding.pipeline.probe_fold import ProbeFold
from decoding.strategy import Activations, Strategy, Tensors

LAYERS, HEADS, HEAD_DIM = 3, 2, 4


class Counts(Strategy):
    """Counts the layers, and scales the heads by the count. Fails in layer number `failing`."""

    name: ClassVar[str] = "counts"
    paper: ClassVar[str] = "none"
    failing: int = LAYERS
    scaled_heads: int = HEADS

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        if activations.layer == self.failing:
            raise ZeroDivisionError
        return {"count": state.get("count", torch.zeros(())) + 1}

    def head_scales(self, state: Tensors) -> Tensor:
        return torch.arange(float(LAYERS))[:, None] + 10 * state["count"].expand(LAYERS, self.scaled_heads)


def fold_layers(fold: ProbeFold) -> list[list[float] | None]:
    """Fold all layers, and return the scales of each."""
    heads = {"main": torch.zeros(HEADS, HEAD_DIM)}
    results = [fold.fold(Activations(heads, layer, LAYERS)) for layer in range(LAYERS)]
    return [None if scales is None else scales.tolist() for scales in results]


def test_layers_have_the_scales_of_the_state_so_far() -> None:
    fold = ProbeFold(Counts(), layerwise=True)
    assert fold_layers(fold) == [[10, 10], [21, 21], [32, 32]]
    assert (fold.state["count"], fold.failure) == (LAYERS, None)


def test_probe_that_is_not_layerwise_scales_no_head() -> None:
    fold = ProbeFold(Counts(), layerwise=False)
    assert fold_layers(fold) == [None] * LAYERS
    assert fold.state["count"] == LAYERS


@pytest.mark.parametrize(
    ("strategy", "count", "problem"),
    [
        (Counts(failing=1), 1, "failed: ZeroDivisionError"),
        (Counts(scaled_heads=1), 1, "returned [3, 1] from `head_scales` instead of [3, 2]"),
    ],
)
def test_no_hook_runs_after_a_failure(strategy: Counts, count: int, problem: str) -> None:
    fold = ProbeFold(strategy, layerwise=True)
    assert fold_layers(fold)[1:] == [None] * (LAYERS - 1)
    assert fold.state["count"] == count
    assert isinstance(fold.failure, StrategyFailed)
    assert fold.failure.problem == problem
