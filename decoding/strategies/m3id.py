"""Mutual-information decoding: subtract logits computed without the image, more so the longer the answer."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest
from decoding.strategy import Step

MAX_WEIGHT = 1000.0


class M3ID(PlausibleContrast):
    """z_f = z + (e^{lambda t} - 1) (z - z_blind) where p(w) >= beta max p, -inf elsewhere.

    z_blind comes from the prompt without its images, and t = 1, 2, ... counts the tokens of the answer. The weight
    grows with t, because the influence of the language grows with the length of the answer. With g_t = e^{-lambda t}
    the paper writes the weight as (1 - g_t)/g_t, and the scores as log-probabilities, whose normalizers shift all
    tokens alike.

    Source: Favero et al., CVPR 2024, arXiv:2403.14003. There is no official code. This follows the implementation in
    AvisC's repository.

    Deviations and doubts:
    - The weight stops growing at 1000 (t = 346 with the default lambda). There the difference alone decides among the
      plausible tokens. Without a bound the weight overflows.
    - The paper corrects only steps without a certain token. `threshold` is that gate: the correction applies where max
      p <= threshold. Its value could not be verified. The default of 1 applies the correction everywhere.
    """

    name = "m3id"
    paper = "arXiv:2403.14003"
    neutral = {"decay": 0, "beta": 0}
    needs_images = True

    decay: Annotated[
        float, Field(ge=0, le=10, description="Lambda: growth of the contrast per token; 0 turns it off.")
    ] = 0.02
    threshold: Annotated[float, Field(ge=0, le=1, description="Correct only where no token is likelier than this.")] = (
        1.0
    )

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("blind", request.prompt.without_images())

    def contrast(self, step: Step) -> Tensor:
        weight = (self.decay * (step.position + 1.0)).expm1().clamp(max=MAX_WEIGHT)  # [..., 1]
        if self.threshold < 1:
            certain = step.raw.float().softmax(dim=-1).amax(dim=-1, keepdim=True) > self.threshold
            weight = weight.masked_fill(certain, 0.0)
        return contrast(step.scores, step.branches["blind"], weight)
