from typing import ClassVar

import pytest
import torch
from torch import Tensor

from decoding.onion import through
from decoding.strategy import Step, Strategy


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
