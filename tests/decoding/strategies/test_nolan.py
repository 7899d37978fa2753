"""Weights of `nolan`."""

import math

import pytest
import torch
from torch import Tensor

from decoding.strategies.nolan import NoLan, symmetric_divergence
from decoding.strategy import Step

Z = torch.tensor([2.0, 1.5, 0.0, -1.0])


def make_step(blind: Tensor, scores: Tensor = Z) -> Step:
    return Step(scores, Z, {"blind": blind}, {}, torch.tensor([0]))


@pytest.mark.parametrize(
    ("blind", "divergence"), [([1.0, 1.6, 0.2, -1.5], 0.146889), ([-3.0, 2.0, 4.0, 1.0], 2.886740)]
)
def test_divergence_equals_reference_values(blind: list[float], divergence: float) -> None:
    assert symmetric_divergence(Z, torch.tensor(blind)).item() == pytest.approx(divergence, abs=1e-5)


@pytest.mark.parametrize(
    ("blind", "scale", "weight"),
    [
        ([1.0, 1.6, 0.2, -1.5], 0.8, 1.599998),
        ([1.0, 1.6, 0.2, -1.5], 0.9, 1.799998),
        ([-3.0, 2.0, 4.0, 1.0], 0.8, 1.066551),
        ([-80.0, -80.0, -80.0, 80.0], 0.8, 0.8 * (math.tanh(1 / 90) + 1)),  # hardly more than the scale
    ],
)
def test_weight_grows_with_agreement(blind: list[float], scale: float, weight: float) -> None:
    other = torch.tensor(blind)
    moved = NoLan(scale=scale).logits(make_step(other)) - Z
    found = (moved / (Z - other)).tolist()
    assert found == pytest.approx([weight] * 4, abs=2e-2 if blind[0] < -10 else 1e-5)
    assert all(scale - 1e-5 <= each <= 2 * scale + 1e-5 for each in found)


def test_equal_branches_have_twice_the_scale_and_no_effect() -> None:
    assert torch.equal(NoLan().logits(make_step(Z)), Z)
    almost = Z + torch.tensor([1e-4, 0.0, 0.0, 0.0])
    moved = NoLan().logits(make_step(almost, Z.double())) - Z.double()
    assert moved[0].item() == pytest.approx(-1.6e-4, rel=1e-2)


def test_weight_follows_the_model_and_the_contrast_the_inner_scores() -> None:
    blind, inner = torch.tensor([1.0, 1.6, 0.2, -1.5]), torch.tensor([0.0, 5.0, -1.0, 2.0])
    after = NoLan().logits(make_step(blind, inner))
    torch.testing.assert_close(after, inner + 1.599998 * (inner - blind), atol=1e-5, rtol=0)


def test_tokens_that_one_branch_rules_out_do_not_count() -> None:
    out = torch.tensor([2.0, 1.5, -math.inf, -1.0])
    assert symmetric_divergence(out, out).item() == 0
    assert math.isfinite(symmetric_divergence(Z, out).item())
    assert NoLan().logits(make_step(out))[2] == Z[2]
