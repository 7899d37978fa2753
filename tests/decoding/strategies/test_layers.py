"""Which layers of a model DoLa and DeCo listen at."""

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
def test_candidates_follow_from_the_depth(
    parameters: dict[str, Any], depth: int, tied: bool, layers: list[int]
) -> None:
    assert list(DoLa(**parameters).exits(depth, tied).layers) == layers


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
    assert list(DeCo(**parameters).exits(depth, False).layers) == layers


def test_shares_are_in_order() -> None:
    with pytest.raises(ValidationError, match="`first` lies after `last`"):
        DeCo(first=0.9, last=0.1)


def test_raw_states_can_be_asked_for() -> None:
    assert not DoLa(normed=False).exits(32, False).normed
    assert not DeCo(normed=False).exits(32, False).normed
