"""A strategy that subtracts logits computed without the image."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from onlyseen import PER_ROW, GenerateRequest, Step, Strategy
from onlyseen.logits_ops import contrast, mask_logits, plausibility_mask


class Cautious(Strategy):
    """z_f = (1 + doubt) z - doubt z_blind where p(w) >= beta max p, -inf elsewhere. z_blind is without the images."""

    name = "cautious"
    paper = "none"
    neutral = {"doubt": 0, "beta": 0}
    needs_images = True

    doubt: Annotated[float, Field(ge=0, le=10, description="Weight of the contrast; 0 turns it off."), PER_ROW] = 0.5
    beta: Annotated[float, Field(ge=0, le=1, description="Plausibility threshold; 0 keeps all tokens."), PER_ROW] = 0.1

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("blind", request.prompt.without_images())

    def logits(self, step: Step) -> Tensor:
        contrasted = contrast(step.scores, step.branches["blind"], self.doubt)
        return mask_logits(contrasted, plausibility_mask(step.raw, self.beta))
