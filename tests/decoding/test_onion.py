from typing import ClassVar

import pytest
import torch
from torch import Tensor

from decoding.onion import factors, through
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
def test_a_hook_that_does_not_keep_shape_and_dtype_is_named(how: str) -> None:
    raw = torch.randn(3, 7)
    with pytest.raises(TypeError, match=r"`careless.logits` made torch.float(32|64) \[.*\] of torch.float32 \[3, 7\]"):
        through([Careless(how=how)], raw, {}, {}, torch.zeros(3, 1))


def test_one_that_keeps_them_is_heard() -> None:
    raw = torch.randn(3, 7)
    assert through([Careless(how="kept")], raw, {}, {}, torch.zeros(3, 1)) is raw


class Scaling(Strategy):
    name: ClassVar[str] = "scaling"
    paper: ClassVar[str] = "none"
    by: tuple[tuple[float, ...], ...] | None

    def heads(self, memory: Tensors) -> Tensor | None:
        return None if self.by is None else torch.tensor(self.by)


def test_factors_multiply() -> None:
    stack = [Scaling(by=((1, 2), (3, 1), (1, 1))), Scaling(by=None), Scaling(by=((1, 5), (1, 1), (1, 7)))]
    product = factors(stack, {}, (3, 2))
    assert product is not None
    assert product.tolist() == [[1, 10], [3, 1], [1, 7]]
    assert factors([Scaling(by=None)], {}, (3, 2)) is None


@pytest.mark.parametrize("by", [((2,), (2,), (2,)), ((2, 1),), ((1, 1), (1, 2))])
def test_factors_of_another_shape_are_named(by: tuple[tuple[float, ...], ...]) -> None:
    """Two of these would broadcast."""
    with pytest.raises(TypeError, match=r"`scaling.heads` made .*: it must make \[3, 2\]"):
        factors([Scaling(by=by)], {}, (3, 2))
