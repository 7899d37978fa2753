"""Contrast with shared early layers: subtract logits of the model that loses the image halfway."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.parameters import Contrast
from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategy import Activations, Program, Step, Strategy, Tensors


class SIRA(Strategy):
    """z_f = (1 + alpha) z - alpha z_late, without a cut.

    z_late, [vocab], comes from the same prompt. Its branch sees the image in the first layers. From layer number
    b = `boundary` times the depth on, no token attends to image tokens, and the image tokens themselves are dropped.
    The text keeps its positions, and what it has taken from the image before. The defaults give the paper's b: 16 of
    32 layers (LLaVA-1.5-7B) and 14 of 28 (Qwen2.5-VL-7B). At `boundary` 1 the branch equals the main row.

    Source: arXiv:2605.14621. There is no published code.

    Deviations and doubts:
    - The paper shares the layers below b, so that a step costs 1 + (L - b) / L rows of L layers. Here the branch runs
      all its layers, which gives the same logits. A step costs two rows.
    - The paper names no cut. A cut, as in other contrasts, is the stack `truncate+sira`.
    - For models of other depths the boundary of the middle is a guess.
    """

    name = "sira"
    paper = "arXiv:2605.14621"
    neutral = {"alpha": 0}
    needs_images = True

    alpha: Contrast = 0.5
    boundary: Annotated[
        float, Field(ge=0, le=1, description="First layer without the image, as a share of the depth; 1 drops nothing.")
    ] = 0.5

    def run(self, request: GenerateRequest) -> Program:
        # The attention only has the number of image tokens. The answer continues from this pass over the prompt.
        probe = ProbeRequest({"with_image": request.prompt}, main="with_image", capture=frozenset({"attention"}))
        state: StateHandle = yield probe
        return request.with_branch("late", request.prompt).with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        if state:
            return state
        attention = activations.attention["with_image"]  # [heads, image tokens]
        boundary = math.floor(self.boundary * activations.layers + 0.5)
        is_early = torch.arange(activations.layers, device=attention.device)[:, None] < boundary
        return {"kept_tokens": is_early.repeat(1, attention.shape[-1])}

    def keep_image_tokens(self, state: Tensors) -> Tensor:
        return state["kept_tokens"]

    def logits(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["late"], self.alpha)
