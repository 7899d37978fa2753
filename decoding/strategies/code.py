"""Countering description contrastive decoding: subtract logits computed on the model's own description."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast, mask_logits, plausibility_mask
from decoding.parameters import DescriptionTokens
from decoding.requests import Answer, GenerateRequest, SamplingParams
from decoding.strategy import TEXT_SIDE, Program, Step, Strategy

DESCRIBE = (
    "Describe this image in detail: all that can be seen in it and how it interacts, "
    "so that any question about the image could be answered from the description alone."
)


class CODE(Strategy):
    """z_f = (1 + alpha k) z - alpha k z_d where p(w) >= beta D max p, -inf elsewhere, with k = 1 - D.

    z_d, [vocab], comes from a prompt with the model's own description in place of the image. The description holds
    content of the image and invented content. Its disagreement D with the image about the next token sets the strength
    of the contrast and of the cut. D = 1/2 sum_w log2(|p(w) - p_d(w)|^a + 1) (p(w) + p_d(w)), between 0 and 1. p and
    p_d are the softmax of z and z_d. Where they agree, D is small: the contrast is strong and the cut weak.

    Source: Kim et al., NeurIPS 2024, arXiv:2406.01920.

    Deviations from the official code:
    - a is 0.7, the default of its command line. The function that it calls falls back to 0.2.
    - alpha and beta, which scale the two dynamic terms, are additions. At 1 they are the paper's method. The code reads
      a beta as well and never uses it.
    - The code puts a BOS token in the image's place. Here the image is removed.
    - The description's prompt has other words with the same content. The description is greedy, as the code's is at its
      default temperature of 0, and at most 512 tokens long.
    """

    name = "code"
    paper = "arXiv:2406.01920"
    official_code = "IVY-LVLM/CODE, licence not checked"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True
    uncut = {"beta": 0.0}

    alpha: Annotated[
        float, Field(ge=0, le=100, description="Factor of the dynamic contrast; 1 is the paper's, 0 turns it off.")
    ] = 1.0
    beta: Annotated[
        float, Field(ge=0, le=1, description="Factor of the dynamic cut; 1 is the paper's, 0 turns it off.")
    ] = 1.0
    exponent: Annotated[
        float, Field(ge=0, le=10, description="Exponent a; smaller values weigh slight disagreement more.")
    ] = 0.7
    description_tokens: DescriptionTokens = 512
    description_prompt: Annotated[
        str, Field(min_length=1, max_length=4096, description="Prompt of the description."), TEXT_SIDE
    ] = DESCRIBE

    def run(self, request: GenerateRequest) -> Program:
        # Not `request.replace`: its branches and stack belong to the final answer, not to the description.
        describe = request.prompt.with_question(self.description_prompt)
        described: Answer = yield GenerateRequest(describe, SamplingParams(max_tokens=self.description_tokens))
        branch = request.prompt.without_images().with_question(f"{described.text.strip()}\n{request.prompt.question}")
        return request.with_branch("description", branch)

    def logits(self, step: Step) -> Tensor:
        described = step.branches["description"]
        distance = self.distance(step.raw, described)  # [..., 1], float32
        weight = self.alpha * (1 - distance)
        return mask_logits(contrast(step.scores, described, weight), plausibility_mask(step.raw, self.beta * distance))

    def distance(self, raw: Tensor, described: Tensor) -> Tensor:
        """Compute D of two [..., vocab] logits, as [..., 1]."""
        p, p_d = (logits.softmax(dim=-1, dtype=torch.float32) for logits in (raw, described))
        bits = ((p - p_d).abs() ** self.exponent + 1).log2()
        return (bits * (p + p_d)).sum(dim=-1, keepdim=True).div(2).clamp(0, 1)
