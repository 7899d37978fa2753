from typing import Any

import pytest
import torch
from torch import Tensor

from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategies.attention.vhr import VHR
from decoding.strategy import Activations, Tensors
from tests.decoding.fakes import make_request

WIDTH = 4


def make_heads(*sizes: float) -> Tensor:
    """Build [heads, WIDTH] outputs of the given lengths."""
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
def test_reinforced_layers_follow_from_the_depth(parameters: dict[str, Any], depth: int, layers: set[int]) -> None:
    assert VHR(**parameters).select_layers(depth) == layers


def test_run_probes_with_and_without_the_image_layer_by_layer() -> None:
    request, vhr = make_request("Is there a cat?"), VHR()
    program = vhr.run(request)
    probe = next(program)
    assert isinstance(probe, ProbeRequest)
    assert probe.layerwise
    assert probe.main == "with_image"
    assert probe.prompts == {"with_image": request.prompt, "without_image": request.prompt.without_images()}
    with pytest.raises(StopIteration) as stop:
        program.send(StateHandle("m"))
    outcome: GenerateRequest = stop.value.value
    assert outcome == request.with_state(StateHandle("m"))


def test_heads_that_the_image_changes_most_are_scaled() -> None:
    with_image, without_image = make_heads(5, 1, 4, 2, 3, 1), make_heads(1, 1, 1, 1, 1, 1)
    state = VHR(alpha=3, late=1).update_state(
        {}, Activations({"with_image": with_image, "without_image": without_image}, layer=2, layers=4)
    )
    assert state["factors"].tolist() == [[1] * 6, [1] * 6, [3, 1, 3, 1, 3, 1], [1] * 6]


@pytest.mark.parametrize("count", [2, 4, 8, 32])
@pytest.mark.parametrize("outliers", ["population", "sample", "keep"])
def test_half_of_the_heads_of_a_reinforced_layer_are_scaled(count: int, outliers: str) -> None:
    random = torch.Generator().manual_seed(count)
    vhr = VHR.model_validate({"outliers": outliers, "late": 0.5, "second": False})
    state: Tensors = {}
    for layer in range(8):
        pair = {name: torch.randn(count, WIDTH, generator=random) for name in ("with_image", "without_image")}
        state = vhr.update_state(state, Activations(pair, layer, 8))
    chosen = (vhr.head_scales(state) == vhr.alpha).sum(dim=-1)
    assert chosen.tolist() == [0] * 4 + [count // 2] * 4


def test_outlier_head_is_not_scaled() -> None:
    """Eq. 6. By the plain median it would be chosen before all others."""
    with_image, without_image = make_heads(-50, 1, 2, 3, 4, 5), make_heads(50, 0, 0, 0, 0, 0)
    assert VHR().select_visual_heads(with_image, without_image).tolist() == [False, False, False, True, True, True]
    assert VHR(outliers="keep").select_visual_heads(with_image, without_image).tolist() == [
        True,
        False,
        False,
        False,
        True,
        True,
    ]


def test_outlier_exceeds_both_thresholds() -> None:
    """A head with a large change and a small output without the image is scaled."""
    with_image, without_image = make_heads(50, 1, 2, 3, 4, 5), make_heads(0, 0, 0, 0, 0, 0)
    assert VHR().select_visual_heads(with_image, without_image)[0]


def test_outliers_parameter_selects_the_deviation() -> None:
    """Changes of 2, 1.2 and 0 have mean 1.07 and deviation .82 or 1.01: only by the first is 2 an outlier."""
    without_image = make_heads(1, 0.6, 0)
    assert VHR().select_visual_heads(-without_image, without_image).tolist() == [False, True, False]
    assert VHR(outliers="sample").select_visual_heads(-without_image, without_image).tolist() == [True, False, False]


@pytest.mark.parametrize("outliers", ["population", "sample", "keep"])
def test_single_head_is_not_scaled(outliers: str) -> None:
    """A sample deviation of one value is 0/0."""
    vhr = VHR.model_validate({"outliers": outliers})
    assert not vhr.select_visual_heads(make_heads(2.0), make_heads(1.0)).any()


def test_head_scales_have_the_dtype_of_the_heads() -> None:
    """A wider factor would widen the activations in front of the output projection, which then refuses them."""
    pair = {"with_image": make_heads(1, 2).bfloat16(), "without_image": make_heads(0, 0).bfloat16()}
    assert VHR().update_state({}, Activations(pair, 0, 4))["factors"].dtype == torch.bfloat16
