"""Scale and cut, one branch."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.strategies.parameters import Plausibility
from decoding.strategy import PER_ROW, Step, Strategy
from decoding.tensors import only, plausible, weighted


class Sharpen(Strategy):
    """z_f = scale z where p(w) >= beta max p, -inf elsewhere: temperature 1/scale after a plausibility cut.

    A control of our own, from no paper. AGLA adds logits without dividing by the sum of their weights, so with two
    identical branches it comes to exactly this at scale = 1 + alpha. What AGLA gains over it, the masked picture has
    contributed. The defaults are those of AGLA (alpha 2, beta 0.5). Greedy answers stay as they are.
    """

    name = "sharpen"
    paper = "none"

    scale: Annotated[float, Field(ge=0.01, le=100, description="What the logits are multiplied by."), PER_ROW] = 3.0
    beta: Plausibility = 0.5

    def logits(self, step: Step) -> Tensor:
        return only(weighted(step.scores, self.scale), plausible(step.raw, self.beta))
