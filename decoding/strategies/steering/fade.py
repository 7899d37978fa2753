"""FADE: weaken the feed-forward network of one layer."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.parameters import SteeredPositions
from decoding.strategy import LayerPlace, SteeredLayers, Strategy, Tensors


class FADE(Strategy):
    """FFN_l(h) <- (1 - alpha) FFN_l(h) in one layer l.

    FFN_l(h), [width], is what the feed-forward network of the layer adds to the residual stream.

    The defaults are those for POPE of LLaVA-1.5-7B: layer 18 of 32. For captions the paper has `alpha` 1 in layer 20,
    which is `layer` 0.625, and for MME 0.02 in layer 17.

    Source: arXiv:2606.29431.

    Choices where the paper is open (there is no official code):
    - Layers count from 0.
    - Every token of prompt and answer is edited. `positions` "answer" leaves the prompt as it is.
    - The layer is a share of the depth.
    """

    name = "fade"
    paper = "arXiv:2606.29431"
    neutral = {"alpha": 0}
    needs_images = True

    alpha: Annotated[
        float, Field(ge=0, le=1, description="Share of the output that is removed; 0 changes nothing.")
    ] = 0.6
    layer: Annotated[float, Field(ge=0, le=1, description="The edited layer, as a share of the depth.")] = 18 / 32
    positions: SteeredPositions = "all"

    def steered_layers(self, layers: int) -> SteeredLayers:
        return SteeredLayers((min(math.floor(self.layer * layers + 0.5), layers - 1),), "feed_forward", self.positions)

    def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
        return outputs * (1 - self.alpha)
