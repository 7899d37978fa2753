"""Early layers that DoLa and DeCo select."""

from typing import Any

import pytest
from pydantic import ValidationError

from decoding.strategies.deco import DeCo
from decoding.strategies.dola import DoLa


@pytest.mark.parametrize(
    ("parameters", "depth", "tied", "layers"),
    [
        ({}, 32, False, [*range(0, 16, 2)]),  # LLaMA-7B, as published
        ({"bucket": "high"}, 32, False, [*range(16, 32, 2)]),
        ({}, 32, True, [*range(2, 16, 2)]),
        ({}, 60, False, [*range(0, 20, 2)]),
        ({"bucket": "high"}, 60, False, [*range(40, 60, 2)]),
        ({}, 6, True, [2]),
        ({}, 4, True, [2]),
        ({}, 1, False, [0]),
        ({"bucket": "high"}, 1, True, [0]),
        ({"layers": (3, 7)}, 32, False, [3, 7]),
    ],
)
def test_candidate_layers_follow_from_the_depth(
    parameters: dict[str, Any], depth: int, tied: bool, layers: list[int]
) -> None:
    assert list(DoLa(**parameters).early_exit_layers(depth, tied).layers) == layers


@pytest.mark.parametrize(
    ("parameters", "depth", "layers"),
    [
        ({}, 32, [*range(20, 29)]),  # LLaVA-1.5, as published
        ({"first": 15 / 32, "last": 24 / 32}, 32, [*range(15, 25)]),  # InstructBLIP, as published
        ({}, 6, [4, 5]),
        ({"last": 1}, 32, [*range(20, 32)]),
        ({}, 1, [0]),
    ],
)
def test_layers_are_shares_of_the_depth(parameters: dict[str, Any], depth: int, layers: list[int]) -> None:
    assert list(DeCo(**parameters).early_exit_layers(depth, False).layers) == layers


def test_first_layer_after_the_last_is_refused() -> None:
    with pytest.raises(ValidationError, match="`first` is larger than `last`"):
        DeCo(first=0.9, last=0.1)


def test_normed_false_selects_raw_states() -> None:
    assert not DoLa(normed=False).early_exit_layers(32, False).normed
    assert not DeCo(normed=False).early_exit_layers(32, False).normed
