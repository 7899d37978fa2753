import math

import pytest
import torch
from torch import Tensor

from decoding.strategies.m3id import M3ID, MOST
from decoding.strategy import Step
from tests.decoding.fakes import asking

Z, BLIND = torch.tensor([2.0, 1.5, 0.0, -1.0]), torch.tensor([1.0, 1.6, 0.2, -1.5])


def mixed(strategy: M3ID, position: int, scores: Tensor = Z) -> Tensor:
    return strategy.logits(Step(scores, scores, {"m3id/blind": BLIND}, {}, torch.tensor([position])))


def test_the_branch_sees_no_picture() -> None:
    ask = M3ID().prepare(asking("Is there a cat?"))
    assert ask.branches == {"m3id/blind": ask.prompt.without_pictures()}


@pytest.mark.parametrize(("position", "weight"), [(0, 0.0202), (9, 0.2214), (49, 1.718), (99, 6.389)])
def test_the_weight_grows_with_the_answer(position: int, weight: float) -> None:
    torch.testing.assert_close(mixed(M3ID(beta=0), position), Z + weight * (Z - BLIND), atol=2e-3, rtol=0)


def test_requests_at_different_positions_have_weights_of_their_own() -> None:
    both = torch.stack([Z, Z])
    step = Step(both, both, {"m3id/blind": BLIND.expand(2, -1)}, {}, torch.tensor([[3], [70]]))
    assert torch.equal(M3ID().logits(step), torch.stack([mixed(M3ID(), 3), mixed(M3ID(), 70)]))


@pytest.mark.parametrize("position", [400, 5000])
def test_a_long_answer_does_not_overflow(position: int) -> None:
    after = mixed(M3ID(decay=10, beta=0.1), position)
    torch.testing.assert_close(after[:3], (Z + MOST * (Z - BLIND))[:3])
    assert after[3] == -math.inf


def test_certain_steps_can_be_left_alone() -> None:
    """The likeliest token of the example has probability .558."""
    assert torch.equal(mixed(M3ID(threshold=0.55, beta=0), 9), Z)
    assert not torch.equal(mixed(M3ID(threshold=0.56, beta=0), 9), Z)
