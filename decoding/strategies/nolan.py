"""No-language-prior decoding: subtract logits computed without the image, more so the more both agree."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.requests import GenerateRequest
from decoding.strategy import PER_ROW, Step, Strategy

LEAST_DIVERGENCE = 1e-6  # nats; tanh is 1 below it


class NoLan(Strategy):
    """z_f = (1 + alpha) z - alpha z_blind, with alpha = scale (tanh(1 / D) + 1) and no cut.

    z_blind, [vocab], comes from the prompt without its images. D = 1/2 (KL(p || p_blind) + KL(p_blind || p)) in nats is
    the disagreement of the two distributions, the softmax of z and z_blind. Where the image changes little, the
    language decides, and alpha is near 2 scale. Where it changes much, alpha falls to scale.

    With `adaptive` false, alpha = scale. At scale 1 this is the paper's variant "Base". The default is "Plus".

    Source: Ren et al., arXiv:2602.22144.

    Deviations from the official code:
    - Greedy decoding is contrasted too. The code patches `sample()` only, and runs the plain model without sampling.
    - D is 1/2 sum_w (p - p_blind)(ln p - ln p_blind), and at least 1e-6. The code adds 1e-10 to the probabilities. For
      equal distributions it divides by zero, and rounding can make its D negative.
    - `scale` 0.8 is the number in the code and in the paper. The script has 0.9, which only names its output.
    - The prompt of the branch is the request's own without its images, in the family's own template. For Qwen-VL the
      code has a plain text in its place.
    """

    name = "nolan"
    paper = "arXiv:2602.22144"
    official_code = "lingfengren/NoLan, Apache-2.0"
    neutral = {"scale": 0}
    needs_images = True

    scale: Annotated[
        float,
        Field(ge=0, le=100, description="Least weight of the contrast, the paper's beta; 0 turns it off."),
        PER_ROW,
    ] = 0.8
    adaptive: Annotated[bool, Field(description="Raise the weight, up to twofold, where both branches agree.")] = True

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("blind", request.prompt.without_images())

    def logits(self, step: Step) -> Tensor:
        blind = step.branches["blind"]
        if not self.adaptive:
            return contrast(step.scores, blind, self.scale)
        divergence = symmetric_divergence(step.raw, blind).double()  # a number and a column give the same product
        agreement = (1 / divergence.clamp(min=LEAST_DIVERGENCE)).tanh()  # [..., 1]
        return contrast(step.scores, blind, self.scale * (agreement + 1))


def symmetric_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Compute the mean of both Kullback-Leibler divergences, in nats.

    Args:
        one: [..., vocab] logits.
        other: [..., vocab] logits.

    Returns:
        [..., 1] divergence. Tokens that one of them rules out do not count, because their divergence would be infinite.
    """
    log_p, log_q = (logits.log_softmax(dim=-1, dtype=torch.float32) for logits in (one, other))
    terms = (log_p.exp() - log_q.exp()) * (log_p - log_q)
    return terms.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).sum(dim=-1, keepdim=True) / 2
