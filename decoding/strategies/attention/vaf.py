"""Visual amplification fusion: scale attention to the image up, and attention to the text before it down."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.parameters import FirstLayerShare, LastLayerShare, LayerRange
from decoding.strategy import AttentionKeys, Strategy, Tensors


class VAF(LayerRange, Strategy):
    """s_j <- enhance s_j for image tokens j, suppress s_j for the text before the first image, in the middle layers.

    s are the attention scores before the softmax, [heads, keys], of every token after the last image: those of the
    question and of the answer. The products keep the sign. So a negative score of an image token becomes more negative,
    unlike in `pai` and `hgai`.

    Layers go from `first` to `last`, as shares of the depth. The defaults give the code's 9 ... 14 of 32.

    Source: Yin et al., CVPR 2025, arXiv:2503.13107 (ClearSight). The defaults are those of the code's script. Its
    argument parser has 1 for both, which changes nothing.

    Deviations from the official code:
    - The text before the image is that of the prompt. The code has 35 tokens, the length of one template.
    - Layers follow the depth of the model. The code has numbers.
    - The paper writes the factors with masks of heads or tokens. The code scales all heads, and so does this.
    - With several images, the text between them stays as it is.
    """

    name = "vaf"
    paper = "arXiv:2503.13107"
    official_code = "ustc-hyin/ClearSight, no licence of its own"
    neutral = {"enhance": 1, "suppress": 1}
    needs_images = True
    edits_question = True

    enhance: Annotated[
        float, Field(ge=0, le=10, description="Factor on the attention scores of image tokens; 1 changes nothing.")
    ] = 1.15
    suppress: Annotated[
        float,
        Field(ge=0, le=10, description="Factor on those of the text before the image; 1 changes nothing."),
    ] = 0.95
    first: FirstLayerShare = 9 / 32
    last: LastLayerShare = 14 / 32

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.layer not in self.select_layers(keys.layers):
            return scores
        is_image = keys.is_image
        images_after = is_image.flip(-1).cumsum(dim=-1).flip(-1)  # [..., keys], the key itself included
        is_before = ~is_image & (images_after == images_after[..., :1]) & (images_after > 0)
        scaled = torch.where(is_image[..., None, :], self.enhance * scores, scores)
        return torch.where(is_before[..., None, :], self.suppress * scores, scaled)
