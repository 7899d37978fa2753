"""SPIN: weaken the attention heads that look at the image least, anew for every token."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.parameters import FirstLayerShare, LastLayerShare, LayerRange
from decoding.strategy import AttentionKeys, Strategy, Tensors


class SPIN(LayerRange, Strategy):
    """A_h <- suppress A_h for the heads h of a layer that look at the image least, at the newest token.

    A_h, [head_dim], is the output of a query head before the output projection. The gaze of a head is
    t_h = sum_j s_j^h over the image tokens j, where s are its attention scores before the softmax, [heads, keys]. In
    each layer the int(kept H) of H heads with the largest t_h keep their output. The choice is made anew for each token
    of the answer, and for the last one of the prompt.

    Layers go from `first` to `last`, as shares of the depth. The defaults are those for captions of LLaVA-1.5-7B, in
    all layers. For POPE it has `kept` 0.8 and `suppress` 0.1. Qwen-VL-Chat has `kept` 0.7 in the layers 0 ... 19 of 32.

    Source: Sarkar et al., EMNLP 2025, arXiv:2505.16411.

    Deviations from the official code:
    - The paper writes of attention. The code sums scores before the softmax, and so does this. The order of the heads
      can differ.
    - Layers follow the depth of the model. The code has numbers.
    - The sum is computed in float32. Image tokens outside a sliding window count too.
    - Without `suppress` the code sets the outputs to 0. Here 0 does.
    """

    name = "spin"
    paper = "arXiv:2505.16411"
    official_code = "YUECHE77/SPIN, MIT"
    neutral = {"suppress": 1}
    needs_images = True

    kept: Annotated[float, Field(ge=0, le=1, description="Share of the heads of a layer that keep their output.")] = (
        0.95
    )
    suppress: Annotated[
        float, Field(ge=0, le=10, description="Factor on the output of the other heads; 1 changes nothing.")
    ] = 0.08
    first: FirstLayerShare = 0.0
    last: LastLayerShare = 1.0

    def gate_heads(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor | None:
        if keys.layer not in self.select_layers(keys.layers):
            return None
        gaze = torch.where(keys.is_image[..., None, :], scores.float(), 0.0).sum(dim=-1)  # [..., heads]
        kept = gaze.topk(int(self.kept * gaze.shape[-1])).indices
        return torch.full_like(scores[..., 0], self.suppress).scatter(-1, kept, 1.0)
