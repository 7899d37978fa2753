"""Which tokens of the picture SID and AvisC leave to their branches."""

import torch
from torch import Tensor

from decoding.strategies.avisc import AvisC
from decoding.strategies.sid import SID
from decoding.strategy import Captured, Strategy, Tensors


def folded(strategy: Strategy, layers: list[list[float]]) -> Tensors:
    """A memory of the attention that each layer's single head pays to the picture's tokens."""
    memory: Tensors = {}
    for number, attention in enumerate(layers):
        captured = Captured(layer=number, layers=len(layers), attention={"seeing": torch.tensor([attention])})
        memory = strategy.digest(memory, captured)
    return memory


def test_sid_keeps_what_the_layer_before_attends_to_least() -> None:
    strategy = SID(kept=0.5, layer=2)
    memory = folded(strategy, [[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2], [0.1, 0.4, 0.2, 0.3]])
    assert strategy.narrow(memory).tolist() == [[True] * 4, [True] * 4, [False, True, False, True]]


def test_sid_leaves_a_model_that_ends_before_its_layer_alone() -> None:
    strategy = SID(layer=5)
    assert strategy.narrow(folded(strategy, [[0.1, 0.2], [0.2, 0.1]])).all()


def test_heads_count_alike() -> None:
    strategy = SID(kept=0.5, layer=1)
    attention = torch.tensor([[0.9, 0.1, 0.2, 0.0], [0.0, 0.3, 0.0, 0.1]])  # means .45, .2, .1, .05
    memory = strategy.digest({}, Captured(layer=0, layers=2, attention={"seeing": attention}))
    assert strategy.narrow(memory)[1].tolist() == [False, False, True, True]


def test_avisc_keeps_what_draws_attention_in_the_layers_that_look_at_the_picture() -> None:
    """The second layer pays .8 of 1.2 in all, so it alone decides at gamma .5; mean .2, deviation .17."""
    layers: Tensor = torch.tensor([[0.0, 0.4, 0.0, 0.0], [0.5, 0.1, 0.1, 0.1]])
    assert AvisC().blind(layers).tolist() == [True, False, False, False]
    assert AvisC(gamma=1).blind(layers).tolist() == [True, True, False, False]
    assert AvisC(deviations=3).blind(layers).tolist() == [False] * 4
    narrowed = AvisC().narrow({"drawn": layers})
    assert narrowed.tolist() == [[True, False, False, False]] * 2
