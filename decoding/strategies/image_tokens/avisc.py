"""Attentional vision calibration: subtract logits computed with the image tokens that draw attention in any case."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.parameters import Contrast
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategy import Activations, Program, Step, Tensors


class AvisC(PlausibleContrast):
    """z_f = (1 + alpha) z - alpha z_blind where p(w) >= beta max p, -inf elsewhere.

    z_blind comes from the same prompt with only the blind tokens of the image: those whose attention is at least mean +
    deviations * standard deviation. The attention is that of the prompt's last token, [layers, image tokens] after the
    mean over heads. It is averaged over the layers that attend most to the image: the fewest whose share of all
    attention to it reaches `gamma`.

    The choice costs no pass of its own. The answer continues from the pass over the prompt in which it is made.

    Source: Woo et al., arXiv:2405.17820. The defaults are those of the official script for POPE. The program that this
    script starts has a default of 0.99 deviations. Other official scripts use alpha 2.5.

    Deviations from the official code:
    - Tokens that are not blind are dropped. The code leaves them in place with their embeddings masked.
    - The standard deviation is that of a population. The code computes that of a sample, which divides by one less.
      `deviation` "sample" does so.
    - The code has fixed positions of the image tokens for two families. Here they are those of the prompt.
    """

    name = "avisc"
    paper = "arXiv:2405.17820"
    official_code = "sangminwoo/AvisC, MIT"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Contrast = 1.0
    gamma: Annotated[
        float, Field(gt=0, le=1, description="Share of the attention to the image that selects the layers.")
    ] = 0.5
    deviations: Annotated[
        float, Field(ge=0, le=100, description="Standard deviations above the mean from which a token is blind.")
    ] = 1.0
    deviation: Annotated[
        Literal["population", "sample"],
        Field(description="Kind of the standard deviation; the official code has that of a sample."),
    ] = "population"

    def run(self, request: GenerateRequest) -> Program:
        probe = ProbeRequest({"with_image": request.prompt}, main="with_image", capture=frozenset({"attention"}))
        state: StateHandle = yield probe
        return request.with_branch("blind", request.prompt).with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        attention = activations.attention["with_image"].float().mean(dim=0)  # [image tokens]
        per_layer = state.get("attention", attention.new_zeros(activations.layers, len(attention))).clone()
        per_layer[activations.layer] = attention
        return {"attention": per_layer}

    def keep_image_tokens(self, state: Tensors) -> Tensor:
        return self.select_blind_tokens(state["attention"]).expand_as(state["attention"])

    def select_blind_tokens(self, attention: Tensor) -> Tensor:
        """Select blind tokens, as a mask [image tokens], from [layers, image tokens] attention."""
        ordered, layers = (attention.sum(dim=-1) / attention.sum()).sort(descending=True)
        is_needed = (ordered.cumsum(dim=0) - ordered < self.gamma).float()
        weights = torch.zeros_like(is_needed).scatter(0, layers, is_needed)  # a mask as an index would make a GPU wait
        mean = (weights[:, None] * attention).sum(dim=0) / weights.sum()
        return mean >= mean.mean() + self.deviations * mean.std(correction=int(self.deviation == "sample"))

    def contrast(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["blind"], self.alpha)
