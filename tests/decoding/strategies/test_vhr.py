from typing import Any

import pytest
import torch
from torch import Tensor

from decoding.ask import Ask, Memory, Probe
from decoding.strategies.vhr import VHR
from decoding.strategy import Captured, Tensors
from tests.decoding.fakes import asking

WIDTH = 4


def heads(*sizes: float) -> Tensor:
    """[heads, WIDTH] outputs of the given lengths."""
    return torch.tensor(sizes)[:, None] * torch.tensor([0.5, -0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("parameters", "depth", "layers"),
    [
        ({}, 32, {1, *range(18, 32)}),  # LLaVA-1.5 and LLaVA-NeXT, as published
        ({"late": 18 / 32, "second": False}, 32, set(range(14, 32))),  # InstructBLIP, as published
        ({}, 40, {1, *range(22, 40)}),
        ({}, 28, {1, *range(16, 28)}),
        ({}, 8, {1, 4, 5, 6, 7}),
        ({}, 7, {1, 4, 5, 6}),
        ({}, 6, {1, 3, 4, 5}),
        ({}, 5, {1, 3, 4}),
        ({}, 1, set()),
        ({"late": 1}, 4, {0, 1, 2, 3}),
        ({"late": 0, "second": False}, 4, set()),
    ],
)
def test_layers_follow_from_the_depth(parameters: dict[str, Any], depth: int, layers: set[int]) -> None:
    assert VHR(**parameters).layers(depth) == layers


def test_it_probes_with_and_without_the_picture_layer_by_layer() -> None:
    ask, vhr = asking("Is there a cat?"), VHR()
    program = vhr.run(ask)
    probe = next(program)
    assert isinstance(probe, Probe)
    assert probe.layerwise
    assert probe.main == "seeing"
    assert probe.prompts == {"seeing": ask.prompt, "blind": ask.prompt.without_pictures()}
    with pytest.raises(StopIteration) as stop:
        program.send(Memory("m"))
    outcome: Ask = stop.value.value
    assert outcome == ask.remember(vhr, Memory("m"))


def test_heads_that_the_picture_changes_most_are_amplified() -> None:
    seeing, blind = heads(5, 1, 4, 2, 3, 1), heads(1, 1, 1, 1, 1, 1)
    memory = VHR(alpha=3, late=1).digest({}, Captured({"seeing": seeing, "blind": blind}, layer=2, layers=4))
    assert memory["factors"].tolist() == [[1] * 6, [1] * 6, [3, 1, 3, 1, 3, 1], [1] * 6]


@pytest.mark.parametrize("count", [2, 4, 8, 32])
@pytest.mark.parametrize("outliers", ["population", "sample", "keep"])
def test_half_of_the_heads_of_a_reinforced_layer_are_chosen(count: int, outliers: str) -> None:
    random = torch.Generator().manual_seed(count)
    vhr = VHR.model_validate({"outliers": outliers, "late": 0.5, "second": False})
    memory: Tensors = {}
    for layer in range(8):
        pair = {name: torch.randn(count, WIDTH, generator=random) for name in ("seeing", "blind")}
        memory = vhr.digest(memory, Captured(pair, layer, 8))
    chosen = (vhr.heads(memory) == vhr.alpha).sum(dim=-1)
    assert chosen.tolist() == [0] * 4 + [count // 2] * 4


def test_a_head_that_is_loud_without_the_picture_too_is_left_alone() -> None:
    """Eq. 6. By the plain median it would be chosen before all others."""
    seeing, blind = heads(-50, 1, 2, 3, 4, 5), heads(50, 0, 0, 0, 0, 0)
    assert VHR().visual(seeing, blind).tolist() == [False, False, False, True, True, True]
    assert VHR(outliers="keep").visual(seeing, blind).tolist() == [True, False, False, False, True, True]


def test_a_head_is_an_outlier_only_by_both_measures() -> None:
    """Much changed but quiet without the picture: that is what is looked for."""
    seeing, blind = heads(50, 1, 2, 3, 4, 5), heads(0, 0, 0, 0, 0, 0)
    assert VHR().visual(seeing, blind)[0]


def test_the_deviation_is_that_of_the_population_unless_asked() -> None:
    """Changes of 2, 1.2 and 0 have mean 1.07 and deviation .82 or 1.01: only by the first is 2 an outlier."""
    blind = heads(1, 0.6, 0)
    assert VHR().visual(-blind, blind).tolist() == [False, True, False]
    assert VHR(outliers="sample").visual(-blind, blind).tolist() == [True, False, False]


@pytest.mark.parametrize("outliers", ["population", "sample", "keep"])
def test_a_single_head_has_no_better_half(outliers: str) -> None:
    """A sample deviation of one value is 0/0."""
    vhr = VHR.model_validate({"outliers": outliers})
    assert not vhr.visual(heads(2.0), heads(1.0)).any()


def test_factors_come_in_the_dtype_of_the_heads() -> None:
    """A wider factor would widen the activations in front of the output projection, which then refuses them."""
    pair = {"seeing": heads(1, 2).bfloat16(), "blind": heads(0, 0).bfloat16()}
    assert VHR().digest({}, Captured(pair, 0, 4))["factors"].dtype == torch.bfloat16
