"""Vision-aware head reinforcement: scale the attention heads that the image changes most."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategy import Activations, Program, Strategy, Tensors

CORRECTION = {"population": 0, "sample": 1}


class VHR(Strategy):
    """A_{l,i} <- alpha A_{l,i} for the heads i of layer l whose output the image changes most.

    A_{l,i}, [head_dim], is the output of a query head before the output projection, at the last position of the prompt.
    VHD_{l,i} = |A_{l,i}(with image) - A_{l,i}(without)|, with the image tokens taken out of the prompt (Eq. 4).
    Heads above the median of their layer are reinforced (Eq. 7). First VHD_{l,i} is set to 0 where both it and
    |A_{l,i}(without)|^2 exceed mean + deviation of their layer, because such heads have large outputs without an image
    too (Eq. 6). The heads are chosen once, layer by layer in a single pass, so that a layer receives the outputs of
    layers that are reinforced already.

    Layers, 0-based: the second, and the last `late` of them. The defaults give the paper's 1 and 18...31 of 32
    (LLaVA-1.5, LLaVA-NeXT). Its 14...31 for InstructBLIP are `late` 0.5625 and `second` false. The paper warns that the
    second layer does not suit every model.

    Source: He et al., ACL 2025, arXiv:2412.13949.

    Choices where the paper is open (the official code was not available):
    - The factors act at every position, the prompt's included, so that cached keys and values agree with them.
    - Only the run with the image is reinforced.
    - The distance is Euclidean. A port uses its square, which can change the outliers but not the median.
    - Deviations are those of the population.
    """

    name = "vhr"
    paper = "arXiv:2412.13949"
    neutral = {"alpha": 1}
    needs_images = True

    alpha: Annotated[float, Field(ge=0, le=10, description="Factor on the chosen heads; 1 changes nothing.")] = 2.0
    late: Annotated[float, Field(ge=0, le=1, description="Share of the layers, from the last, to reinforce.")] = 14 / 32
    second: Annotated[bool, Field(description="Reinforce the second layer too.")] = True
    outliers: Annotated[
        Literal["population", "sample", "keep"],
        Field(description="Standard deviation that finds heads with large outputs in any case; `keep` skips this."),
    ] = "population"

    def run(self, request: GenerateRequest) -> Program:
        pair = {"with_image": request.prompt, "without_image": request.prompt.without_images()}
        state: StateHandle = yield ProbeRequest(pair, main="with_image", layerwise=True)
        return request.with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        with_image, without_image = (
            activations.heads["with_image"],
            activations.heads["without_image"],
        )  # [heads, head_dim]
        factors = state.get("factors", with_image.new_ones(activations.layers, len(with_image))).clone()
        if activations.layer in self.select_layers(activations.layers):
            factors[activations.layer].masked_fill_(
                self.select_visual_heads(with_image.float(), without_image.float()), self.alpha
            )
        return {"factors": factors}

    def head_scales(self, state: Tensors) -> Tensor:
        return state["factors"]

    def select_layers(self, depth: int) -> frozenset[int]:
        """Return the layers to reinforce in a model of `depth` layers."""
        last = math.floor(self.late * depth + 0.5)
        chosen = set(range(depth - last, depth))
        return frozenset(chosen | ({1} if self.second and depth > 1 else set()))

    def select_visual_heads(self, with_image: Tensor, without_image: Tensor) -> Tensor:
        """Select the heads to reinforce, as a mask [heads].

        Args:
            with_image: [heads, head_dim] outputs with the image.
            without_image: [heads, head_dim] outputs without it.

        Returns:
            [heads] mask.
        """
        divergence: Tensor = torch.linalg.vector_norm(with_image - without_image, dim=-1)
        if self.outliers != "keep":
            correction = CORRECTION[self.outliers]
            outliers = is_outlier(divergence, correction) & is_outlier(without_image.square().sum(dim=-1), correction)
            divergence = divergence.masked_fill(outliers, 0.0)
        return divergence > divergence.median()


def is_outlier(values: Tensor, correction: int) -> Tensor:
    """Return [heads] true above mean + standard deviation."""
    centered = values - values.mean()
    variance = centered.square().sum() / max(len(values) - correction, 1)
    return centered > variance.sqrt()
