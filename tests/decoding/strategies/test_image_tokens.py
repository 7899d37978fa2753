"""Image tokens that SID, AvisC, SIRA and DAMRO keep in their branches."""

import statistics

import pytest
import torch
from torch import Tensor

from decoding.strategies.image_tokens.avisc import AvisC
from decoding.strategies.image_tokens.damro import DAMRO
from decoding.strategies.image_tokens.sid import SID
from decoding.strategies.image_tokens.sira import SIRA
from decoding.strategy import Activations, Strategy, Tensors


def fold_layers(strategy: Strategy, layers: list[list[float]]) -> Tensors:
    """Build a state from the attention of each layer's single head to the image tokens."""
    state: Tensors = {}
    for number, attention in enumerate(layers):
        activations = Activations(layer=number, layers=len(layers), attention={"with_image": torch.tensor([attention])})
        state = strategy.update_state(state, activations)
    return state


def test_sid_keeps_the_least_attended_tokens() -> None:
    strategy = SID(kept=0.5, layer=2)
    state = fold_layers(strategy, [[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2], [0.1, 0.4, 0.2, 0.3]])
    assert strategy.keep_image_tokens(state).tolist() == [[True] * 4, [True] * 4, [False, True, False, True]]


def test_sid_drops_nothing_in_a_model_without_its_layer() -> None:
    strategy = SID(layer=5)
    assert strategy.keep_image_tokens(fold_layers(strategy, [[0.1, 0.2], [0.2, 0.1]])).all()


def test_heads_have_equal_weight() -> None:
    strategy = SID(kept=0.5, layer=1)
    attention = torch.tensor([[0.9, 0.1, 0.2, 0.0], [0.0, 0.3, 0.0, 0.1]])  # means .45, .2, .1, .05
    state = strategy.update_state({}, Activations(layer=0, layers=2, attention={"with_image": attention}))
    assert strategy.keep_image_tokens(state)[1].tolist() == [False, False, True, True]


def test_avisc_keeps_blind_tokens_of_the_attending_layers() -> None:
    """The second layer has .8 of 1.2 of the attention, so that it alone counts at gamma .5. Mean .2, deviation .17."""
    layers: Tensor = torch.tensor([[0.0, 0.4, 0.0, 0.0], [0.5, 0.1, 0.1, 0.1]])
    assert AvisC().select_blind_tokens(layers).tolist() == [True, False, False, False]
    assert AvisC(gamma=1).select_blind_tokens(layers).tolist() == [True, True, False, False]
    assert AvisC(deviations=3).select_blind_tokens(layers).tolist() == [False] * 4
    kept = AvisC().keep_image_tokens({"attention": layers})
    assert kept.tolist() == [[True, False, False, False]] * 2


def test_avisc_with_the_deviation_of_a_sample() -> None:
    """The mean is .3. Deviations of .2 and .2309 put the bound at .5 and .5309."""
    layers = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5]])
    assert statistics.stdev([0.1, 0.1, 0.5, 0.5]) == pytest.approx(0.2309, abs=1e-4)
    for deviations, population, sample in ((0.99, True, False), (0.86, True, True), (1.01, False, False)):
        for deviation, is_kept in (("population", population), ("sample", sample)):
            strategy = AvisC.model_validate({"deviation": deviation, "deviations": deviations})
            assert strategy.select_blind_tokens(layers).tolist() == [False, False, is_kept, is_kept]


@pytest.mark.parametrize(("boundary", "layers"), [(0.0, 0), (0.5, 2), (0.6, 2), (0.7, 3), (1.0, 4)])
def test_sira_keeps_all_tokens_in_the_first_layers(boundary: float, layers: int) -> None:
    strategy = SIRA(boundary=boundary)
    kept = strategy.keep_image_tokens(fold_layers(strategy, [[0.2, 0.3, 0.5]] * 4))
    assert kept.tolist() == [[True] * 3] * layers + [[False] * 3] * (4 - layers)


def test_damro_ranks_patches_over_the_full_width() -> None:
    """Two heads of width 2. The full width has the order 2, 3, 1, 4; the mean over heads has 1, 3, 2, 4."""
    query, keys = torch.tensor([2.0, 0, 0, 2]), torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, -1.5], [1.2, 0, 0, 1.2]])
    keys = torch.cat([keys, torch.tensor([[0.0, 0, 0, 2], [1, 0, 0, 0.3]])])
    scores = (query.view(2, 1, 2) * keys.view(5, 2, 2).transpose(0, 1)).sum(-1) / 2**0.5  # [heads, keys]
    late = scores.softmax(-1)[None, :, 1:]
    torch.testing.assert_close(late.log().sum(1), torch.tensor([[-5.495009, -4.222217, -4.787902, -5.777852]]))
    attention = torch.stack([late.flip(-1), late, late.flip(-1)])  # only the last layer but one counts
    full_width = keys[1:] @ query
    for kept in (1, 2, 3):
        expected = torch.zeros(4, dtype=torch.bool).scatter(0, full_width.topk(kept).indices, True)
        assert DAMRO(kept=kept).select_outliers(attention).tolist() == [expected.tolist()]


def test_damro_keeps_tokens_of_each_image_in_all_layers() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.4, 0.1, 0.2, 0.3]])[None, :, None].repeat(2, 1, 1, 1)
    activations = Activations(layer=0, layers=3, vision_attention={"with_image": attention})
    strategy = DAMRO(kept=1)
    kept = strategy.keep_image_tokens(strategy.update_state({}, activations))
    assert kept.tolist() == [[False, True, False, False, True, False, False, False]] * 3
    everything = DAMRO(kept=10)
    assert everything.keep_image_tokens(everything.update_state({}, activations)).all()
