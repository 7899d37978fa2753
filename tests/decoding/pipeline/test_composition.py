from typing import ClassVar

import pytest
import torch
from torch import Tensor

from decoding.errors import StrategyFailed
from decoding.pipeline.composition import apply_logits_hooks, combine_head_scales
from decoding.strategy import Step, Strategy, Tensors


class Careless(Strategy):
    name: ClassVar[str] = "careless"
    paper: ClassVar[str] = "none"
    how: str

    def logits(self, step: Step) -> Tensor:
        return {
            "kept": step.scores,
            "row": step.scores[0],
            "cropped": step.scores[..., 1:],
            "wider": step.scores.double(),
        }[self.how]


@pytest.mark.parametrize("how", ["row", "cropped", "wider"])
def test_hook_with_another_layout_is_named(how: str) -> None:
    raw = torch.randn(3, 7)
    with pytest.raises(
        StrategyFailed,
        match=r"'careless' returned torch.float(32|64) \[.*\] on cpu .* instead of torch.float32 \[3, 7\]",
    ):
        apply_logits_hooks([Careless(how=how)], raw, {}, {}, torch.zeros(3, 1))


def test_hook_with_the_same_layout_is_applied() -> None:
    raw = torch.randn(3, 7)
    assert apply_logits_hooks([Careless(how="kept")], raw, {}, {}, torch.zeros(3, 1)) is raw


class Scaling(Strategy):
    name: ClassVar[str] = "scaling"
    paper: ClassVar[str] = "none"
    by: tuple[tuple[float, ...], ...] | None

    def head_scales(self, state: Tensors) -> Tensor | None:
        return None if self.by is None else torch.tensor(self.by)


def test_head_scales_multiply() -> None:
    stack = [Scaling(by=((1, 2), (3, 1), (1, 1))), Scaling(by=None), Scaling(by=((1, 5), (1, 1), (1, 7)))]
    product = combine_head_scales(stack, {}, (3, 2))
    assert product is not None
    assert product.tolist() == [[1, 10], [3, 1], [1, 7]]
    assert combine_head_scales([Scaling(by=None)], {}, (3, 2)) is None


@pytest.mark.parametrize("by", [((2,), (2,), (2,)), ((2, 1),), ((1, 1), (1, 2))])
def test_head_scales_of_another_shape_are_named(by: tuple[tuple[float, ...], ...]) -> None:
    """Two of these would broadcast."""
    with pytest.raises(StrategyFailed, match=r"'scaling' returned .* from `head_scales` instead of \[3, 2\]"):
        combine_head_scales([Scaling(by=by)], {}, (3, 2))
