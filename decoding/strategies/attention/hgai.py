"""Heads-guided attention intervention: raise attention to the image where the heads look on average."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.parameters import FirstLayerShare, LastLayerShare, LayerRange
from decoding.strategy import AttentionKeys, Strategy, Tensors


class HGAI(LayerRange, Strategy):
    """s_j <- s_j + alpha mean_h |s_j^h| for image tokens j, in every head of the middle layers.

    s are the attention scores of the newest token before the softmax, [heads, keys]. The mean goes over all query
    heads of the layer, so that a head is led to where the others look. Scores of text stay as they are.

    Layers go from `first` to `last`, as shares of the depth. The defaults give the paper's 5 ... 18 of 32
    (LLaVA-1.5-7B). It has the same numbers for LLaVA-1.5-13B, whose 40 layers need `first` 0.125 and `last` 0.45. The
    code has alpha 0.55 and the layers 3 ... 13 for Shikra, and the layers 3 ... 14 for MiniGPT-4.

    Some of the captions that the authors published repeat themselves, and name fewer objects. So compare repetition and
    recall with CHAIR.

    Source: Jiang et al., CVPR 2025, arXiv:2411.16724.

    Deviations from the official code:
    - Layers follow the depth of the model. The code has numbers, and its README ends one layer earlier than its script.
    - Scores are in the dtype of the model, where the code has float16.
    - Each of several images is raised.
    """

    name = "hgai"
    paper = "arXiv:2411.16724"
    official_code = "ZhangqiJiang07/middle_layers_indicating_hallucinations, no licence"
    neutral = {"alpha": 0}
    needs_images = True

    alpha: Annotated[
        float, Field(ge=0, le=10, description="Increase of the attention scores of image tokens; 0 changes nothing.")
    ] = 0.5
    first: FirstLayerShare = 5 / 32
    last: LastLayerShare = 18 / 32

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.layer not in self.select_layers(keys.layers):
            return scores
        increase = self.alpha * scores.abs().mean(dim=-2, keepdim=True)  # [..., 1, keys]
        return torch.where(keys.is_image[..., None, :], scores + increase, scores)
