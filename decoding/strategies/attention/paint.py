"""Attention imbalance correction: raise attention to informative image patches and to summary patches."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.parameters import FirstLayer
from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategy import Activations, AttentionKeys, Program, Strategy, Tensors

TINY = 1e-12  # so that a layer which the image does not change has no sensitive head


class PAINT(Strategy):
    """s_j <- s_j + alpha |s_j| for local patches j, s_j + beta |s_j| for summary patches.

    s are the attention scores of the newest token before the softmax, [heads, keys], in the layers from number
    `first_layer` on. The kind of a patch follows from the attention of the vision tower's class token, summed over
    heads. Local patches are the `ratio` with the most attention in the first layer. Summary patches are those whose
    share in the last layer but one exceeds Q3 + 1.5 (Q3 - Q1). The tower stores global content of the image there.
    Summary patches are not local. Other patches stay as they are.

    `modulation` "sensitive" is the head-specific modulation that the paper announces. It multiplies alpha and beta by
    the visual sensitivity of each head, and probes one prompt more. The sensitivity is |A(with image) - A(without)| at
    the last position of the prompt, divided by the mean of the layer. A is the head's output before the output
    projection.

    The transformers engine computes the edited query row next to SDPA, as for `pai`. It holds no attention matrix.

    Source: Arif et al., arXiv:2501.12206.

    Deviations from the official code:
    - The code has no head-specific modulation. The measure is that of VHR.
    - Its spatial set, off by default, ranks rows of a softmax by their sum, which is 1. It is left out.
    - It can contrast with an image-free prompt as PAI does. Here that is `pai+paint` with pai's alpha at 0.
    - Its defaults, alpha 0.7 and beta 0.3, are kept. Between alpha 0.5 and 0.7 the published answers double in length,
      and their F1 falls: compare length and repetition with CHAIR.
    - Layers go on to the last of any model, and each of several images has its own two sets.
    """

    name = "paint"
    paper = "arXiv:2501.12206"
    official_code = "hasanar1f/PAINT, licence not checked"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Annotated[float, Field(ge=0, le=10, description="Increase of the attention scores of local patches.")] = 0.7
    beta: Annotated[float, Field(ge=0, le=10, description="Increase of the attention scores of summary patches.")] = 0.3
    ratio: Annotated[float, Field(ge=0, le=1, description="Share of the patches that are local.")] = 0.25
    first_layer: FirstLayer = 2
    modulation: Annotated[
        Literal["uniform", "sensitive"],
        Field(description="Same for all heads, or by the measured visual sensitivity of each."),
    ] = "uniform"

    def run(self, request: GenerateRequest) -> Program:
        if self.modulation == "uniform":
            probe = ProbeRequest(
                {"with_image": request.prompt}, main="with_image", capture=frozenset({"vision_attention"})
            )
        else:
            pair = {"with_image": request.prompt, "without_image": request.prompt.without_images()}
            probe = ProbeRequest(pair, main="with_image", capture=frozenset({"vision_attention", "heads"}))
        state: StateHandle = yield probe
        return request.with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        state = state or {"increase": self.compute_attention_increase(activations.vision_attention["with_image"])}
        if self.modulation == "uniform":
            return state
        with_image, without_image = (
            activations.heads["with_image"].float(),
            activations.heads["without_image"].float(),
        )  # [heads, head_dim]
        sensitivity: Tensor = torch.linalg.vector_norm(with_image - without_image, dim=-1)
        factors = state.get("heads", sensitivity.new_ones(activations.layers, len(sensitivity))).clone()
        factors[activations.layer] = sensitivity / sensitivity.mean().clamp(min=TINY)
        return {**state, "heads": factors}

    def compute_attention_increase(self, attention: Tensor) -> Tensor:
        """Compute the coefficients of |s|, [images * patches].

        Args:
            attention: [tower layers, images, heads, patches] attention of the class token.

        Returns:
            [images * patches] coefficients.
        """
        first, late = attention[0].sum(dim=1), attention[max(len(attention) - 2, 0)].sum(dim=1)  # [images, patches]
        lower, upper = (late.quantile(share, dim=-1, keepdim=True) for share in (0.25, 0.75))
        summary = late > upper + 1.5 * (upper - lower)
        informative = first.topk(int(self.ratio * first.shape[-1]), dim=-1).indices
        local = torch.zeros_like(summary).scatter(-1, informative, True) & ~summary
        increase: Tensor = self.alpha * local.float() + self.beta * summary.float()
        return increase.flatten()

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.layer < self.first_layer:
            return scores
        increase = state["increase"].gather(-1, keys.image_token_index.clamp(min=0)) * keys.is_image  # [..., keys]
        factors = state["heads"][..., keys.layer, :, None] if "heads" in state else 1.0
        return scores + (factors * increase[..., None, :]).to(scores.dtype) * scores.abs()
