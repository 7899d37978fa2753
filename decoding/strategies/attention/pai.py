"""Pay attention to image: raise attention to the image, and contrast with logits computed without it."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.parameters import FirstLayer
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest
from decoding.strategy import AttentionKeys, Step, Tensors


class PAI(PlausibleContrast):
    """s_j <- s_j + alpha |s_j| for image tokens j, and classifier-free guidance without the image.

    z_f = z_blind + gamma (z - z_blind) where p(w) >= beta max p, -inf elsewhere.

    s are the attention scores of the newest token before the softmax, [heads, keys], in the layers from number
    `first_layer` on. Positive scores grow and negative ones shrink towards 0, so that attention to the image rises in
    both cases. z_blind comes from the prompt without its images, with unchanged attention. The second rule is
    the guidance. gamma 1 turns guidance off, with its cut and its branch.

    Both engines run every pass with their attention kernel, and compute the one edited query row a second time, score
    by score. They hold no attention matrix.

    Source: Liu et al., ECCV 2024, arXiv:2407.21771.

    Deviations from the official code:
    - The paper's `first_layer`, 2 of 32, is an absolute number here too. The edit goes on to the last layer of any
      model; the code stops at layer 31 whatever the depth.
    - alpha 0.2 and gamma 1.1 are those of its README for LLaVA. Its argument parser has gamma 2.
    - Logits are combined. The code's log-probabilities differ from them by one number per row.
    """

    name = "pai"
    paper = "arXiv:2407.21771"
    official_code = "LALBJ/PAI, MIT"
    neutral = {"alpha": 0, "gamma": 1}
    needs_images = True

    alpha: Annotated[
        float, Field(ge=0, le=10, description="Increase of the attention scores of image tokens; 0 changes nothing.")
    ] = 0.2
    gamma: Annotated[
        float, Field(ge=1, le=100, description="Weight of the guidance; 1 turns it off and saves its branch.")
    ] = 1.1
    first_layer: FirstLayer = 2

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request if self.gamma == 1 else request.with_branch("blind", request.prompt.without_images())

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.layer < self.first_layer:
            return scores
        return torch.where(keys.is_image[..., None, :], scores + self.alpha * scores.abs(), scores)

    def contrast(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["blind"], self.gamma - 1)

    def logits(self, step: Step) -> Tensor:
        return step.scores if self.gamma == 1 else super().logits(step)
