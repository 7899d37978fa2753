"""Image tokens that SID and AvisC keep in their branches."""

import torch
from torch import Tensor

from decoding.strategies.avisc import AvisC
from decoding.strategies.sid import SID
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
