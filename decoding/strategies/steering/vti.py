"""VTI: steer every layer from hallucinated captions towards true ones."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.parameters import VectorsFile
from decoding.requests import GenerateRequest, StateHandle, VectorsRequest
from decoding.strategies.steering.rotation import rotate
from decoding.strategy import LayerPlace, Program, SteeredLayers, Strategy, Tensors

SCALE = 0.1  # of the strength, in the official code


class VTI(Strategy):
    """f_l <- |f_l| unit(f_l / |f_l| + 0.1 strength d_l / |d_l|), with directions d_l from a file of the operator.

    f_l, [width], is what the feed-forward network of layer l adds to the residual stream. All layers and all tokens of
    prompt and answer are steered. The file comes from pairs of captions of images, one true and one with hallucinated
    objects. `python -m onlyseen steering-vectors` reads h, the hidden states of all layers, [(1 + layers) width], at
    the last token of either caption. With D_i = h(true) - h(hallucinated) of pair i, the directions d are
    mean_i D_i + u. u is the first principal axis of the centred D_i, of length 1, over all layers at once. Its sign
    makes the largest of its scores positive. The states before the first layer count for u, and are dropped from d.

    The README of the official code has `strength` 0.8 for MMHal.

    Source: Liu et al., ICLR 2025, arXiv:2410.15778.

    Deviations from the paper and the official code:
    - The paper also steers the vision tower, with directions from images of which patches are masked. This is its text
      part.
    - The code has 50 of 100 pairs that it brings, on images of COCO. Here the operator brings the pairs, and all count.
    - The hidden state after the last layer is taken before the final norm.
    """

    name = "vti"
    paper = "arXiv:2410.15778"
    official_code = "shengliu66/VTI, no licence"
    neutral = {"strength": 0}

    vectors: VectorsFile = "vti.safetensors"
    strength: Annotated[float, Field(ge=0, le=100, description="Weight of the directions; 0 turns them off.")] = 0.9

    def run(self, request: GenerateRequest) -> Program:
        state: StateHandle = yield VectorsRequest(self.vectors, f"decoding.{self.name}.vectors")
        return request.with_state(state)

    def steered_layers(self, layers: int) -> SteeredLayers:
        return SteeredLayers(tuple(range(layers)), "feed_forward")

    def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
        if self.strength == 0:
            return outputs
        return rotate(outputs, state["vectors"][..., place.layer, :], SCALE * self.strength)
