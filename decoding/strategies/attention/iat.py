"""Increasing attention to generated text: raise attention to the tokens of the answer."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.parameters import FirstLayerShare, LastLayerShare, LayerRange
from decoding.strategy import AttentionKeys, Strategy, Tensors


class IAT(LayerRange, Strategy):
    """s_j <- s_j + alpha |s_j| for tokens j of the answer, in the middle layers.

    s are the attention scores of the newest token before the softmax, [heads, keys]. The tokens of the answer are those
    that the model has generated, the newest one included. So the first token of the answer is the plain model's.

    Layers go from `first` to `last`, as shares of the depth. The defaults give the paper's 5 ... 17 of 32
    (LLaVA-1.5-7B).

    Source: arXiv:2603.04908 (CVPR 2026). The paper's main method is `adaiat`, which chooses heads and steps by
    statistics of the model. Here is the variant that it is compared with.

    Deviations from the official code:
    - Layers follow the depth of the model. The code has numbers.
    - Batches and all kinds of sampling are edited too.
    """

    name = "iat"
    paper = "arXiv:2603.04908"
    official_code = "XianguiKang/AdaIAT, no licence"
    neutral = {"alpha": 0}
    needs_images = True

    alpha: Annotated[
        float, Field(ge=0, le=10, description="Increase of the attention scores of the answer; 0 changes nothing.")
    ] = 0.8
    first: FirstLayerShare = 5 / 32
    last: LastLayerShare = 17 / 32

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.layer not in self.select_layers(keys.layers):
            return scores
        return torch.where(keys.is_generated[..., None, :], scores + self.alpha * scores.abs(), scores)
