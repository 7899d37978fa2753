import math

import pytest
import torch
from torch import Tensor

from decoding.strategies.m3id import M3ID, MAX_WEIGHT
from decoding.strategy import Step
from tests.decoding.fakes import make_request

Z, BLIND = torch.tensor([2.0, 1.5, 0.0, -1.0]), torch.tensor([1.0, 1.6, 0.2, -1.5])


def compute_scores(strategy: M3ID, position: int, scores: Tensor = Z) -> Tensor:
    return strategy.logits(Step(scores, scores, {"blind": BLIND}, {}, torch.tensor([position])))


def test_branch_has_no_image() -> None:
    request = M3ID().prepare(make_request("Is there a cat?"))
    assert request.branches == {"blind": request.prompt.without_images()}


@pytest.mark.parametrize(("position", "weight"), [(0, 0.0202), (9, 0.2214), (49, 1.718), (99, 6.389)])
def test_weight_grows_with_the_position(position: int, weight: float) -> None:
    torch.testing.assert_close(compute_scores(M3ID(beta=0), position), Z + weight * (Z - BLIND), atol=2e-3, rtol=0)


def test_rows_at_different_positions_have_different_weights() -> None:
    both = torch.stack([Z, Z])
    step = Step(both, both, {"blind": BLIND.expand(2, -1)}, {}, torch.tensor([[3], [70]]))
    assert torch.equal(M3ID().logits(step), torch.stack([compute_scores(M3ID(), 3), compute_scores(M3ID(), 70)]))


@pytest.mark.parametrize("position", [400, 5000])
def test_weight_of_a_long_answer_is_bounded(position: int) -> None:
    after = compute_scores(M3ID(decay=10, beta=0.1), position)
    torch.testing.assert_close(after[:3], (Z + MAX_WEIGHT * (Z - BLIND))[:3])
    assert after[3] == -math.inf


def test_threshold_skips_certain_steps() -> None:
    """The likeliest token of the example has probability .558."""
    assert torch.equal(compute_scores(M3ID(threshold=0.55, beta=0), 9), Z)
    assert not torch.equal(compute_scores(M3ID(threshold=0.56, beta=0), 9), Z)
