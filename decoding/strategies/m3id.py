"""Mutual-information decoding: the longer the answer, the more of what the model says without a picture comes off."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.ask import Ask
from decoding.strategies.parameters import Plausibility
from decoding.strategy import Step, Strategy
from decoding.tensors import contrast, only, plausible

MOST = 1000.0


class M3ID(Strategy):
    """z_f = z + (e^{lambda t} - 1) (z - z_blind) where p(w) >= beta max p, -inf elsewhere.

    z_blind sees the prompt without its pictures, and t = 1, 2, ... counts the tokens of the answer: the further the
    answer goes, the more of it comes from the language alone. With g_t = e^{-lambda t} the paper writes the weight as
    (1 - g_t)/g_t, and the scores as log-probabilities, whose normalisers shift all tokens alike.
    Favero et al., CVPR 2024, arXiv:2403.14003.

    There is no official code; this follows the one in AvisC's. Deviations and doubts:
    - The weight stops growing at 1000 (t = 346 with the default lambda), where the choice among the plausible tokens
      has long been that of the difference alone. Without a bound it overflows.
    - The paper corrects only where no token is certain. `threshold` is that gate: the correction is made where
      max p <= threshold. Its value could not be verified, and the default of 1 makes the correction everywhere.
    """

    name = "m3id"
    paper = "arXiv:2403.14003"

    decay: Annotated[
        float, Field(ge=0, le=10, description="Lambda: how fast the picture is forgotten; 0 turns the contrast off.")
    ] = 0.02
    beta: Plausibility = 0.1
    threshold: Annotated[float, Field(ge=0, le=1, description="Correct only where no token is likelier than this.")] = (
        1.0
    )

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        return ask.branch(self, "blind", ask.prompt.without_pictures())

    def logits(self, step: Step) -> Tensor:
        weight = (self.decay * (step.position + 1.0)).expm1().clamp(max=MOST)  # [..., 1]
        if self.threshold < 1:
            certain = step.raw.float().softmax(dim=-1).amax(dim=-1, keepdim=True) > self.threshold
            weight = weight.masked_fill(certain, 0.0)
        mixed = contrast(step.scores, step.branches["m3id/blind"], weight)
        return only(mixed, plausible(step.raw, self.beta))
