"""Tests of the masks of prompt tokens that branches see."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from decoding.errors import StrategyFailed
from decoding.pipeline.kept_tokens import find_kept_tokens, index_image_tokens
from decoding.strategy import Strategy, Tensors

INDEX = torch.tensor([-1, 0, 1, -1])


class KeepsState(Strategy):
    """Keeps the image tokens of its state."""

    name: ClassVar[str] = "keeps_state"
    paper: ClassVar[str] = "none"

    def keep_image_tokens(self, state: Tensors) -> Any:
        return state.get("kept", [[True, False]])


def test_mask_has_all_text_and_the_kept_image_tokens() -> None:
    state = {"kept": torch.tensor([[True, True], [False, True]])}
    kept = find_kept_tokens(KeepsState(), state, INDEX, 2, 2)
    assert kept is not None
    assert kept.tolist() == [[True, True, True, True], [True, False, True, True]]


def test_branch_without_image_tokens_sees_all() -> None:
    state = {"kept": torch.ones(2, 0, dtype=torch.bool)}
    assert find_kept_tokens(KeepsState(), state, torch.tensor([-1, -1]), 0, 2) is None


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({}, "returned list from `keep_image_tokens` instead of a tensor"),
        ({"kept": torch.ones(2, 2)}, "returned torch.float32 from `keep_image_tokens` instead of torch.bool"),
        *(
            (
                {"kept": torch.ones(layers, tokens, dtype=torch.bool)},
                f"returned [{layers}, {tokens}] from `keep_image_tokens` instead of [2, 2]",
            )
            for layers, tokens in ((2, 1), (2, 3), (1, 2), (3, 2))
        ),
    ],
)
def test_result_of_another_kind_fails_with_the_name_of_the_strategy(state: Tensors, problem: str) -> None:
    with pytest.raises(StrategyFailed) as failure:
        find_kept_tokens(KeepsState(), state, INDEX, 2, 2)
    assert (failure.value.strategy, failure.value.problem) == ("keeps_state", problem)


def test_image_tokens_are_indexed_from_0() -> None:
    assert index_image_tokens(torch.tensor([False, True, True, False])).tolist() == INDEX.tolist()
