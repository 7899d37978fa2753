"""Sharpening: scale the logits after a plausibility cut."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.logits_ops import mask_logits, plausibility_mask, scale
from decoding.parameters import Plausibility
from decoding.strategy import PER_ROW, Step, Strategy


class Sharpen(Strategy):
    """z_f = scale z where p(w) >= beta max p, -inf elsewhere. This equals temperature 1/scale after the cut.

    Source: none, it is a control of this project. AGLA adds logits without dividing by the sum of their weights. With
    two identical branches it equals this strategy at scale = 1 + alpha, so that any gain of AGLA over it comes from the
    masked image. The defaults correspond to those of AGLA (alpha 2, beta 0.5). Greedy answers stay as they are.
    """

    name = "sharpen"
    paper = "none"
    neutral = {"scale": 1, "beta": 0}
    uncut = {"beta": 0.0}

    scale: Annotated[float, Field(ge=0.01, le=100, description="Factor of the logits."), PER_ROW] = 3.0
    beta: Plausibility = 0.5

    def logits(self, step: Step) -> Tensor:
        return mask_logits(scale(step.scores, self.scale), plausibility_mask(step.raw, self.beta))
