"""Adaptive IAT: raise attention to the answer by head, where it is as low as where the model hallucinates."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.parameters import FirstLayerShare, LastLayerShare, LayerRange
from decoding.strategy import AttentionKeys, Strategy, Tensors

LEAST_FACTOR = 1e-6  # of an attention weight
TINY = 1e-12


class AdaIAT(LayerRange, Strategy):
    """a_j^h <- a_j^h (1 + alpha (M_h - 1)) for tokens j of the answer, then a^h <- a^h / sum_j a_j^h.

    a^h are the attention weights of the newest token after the softmax, [heads, keys]. The tokens of the answer are
    those that the model has generated, the newest one included. A layer is edited where sum_h mean_j a_j^h < u + beta
    (v - u), with the mean over the tokens of the answer. So the first token of the answer is the plain model's.

    The operator measures u_h and v_h, [layers, heads]: the mean attention of a head to a token of the answer, where the
    model hallucinates an object and where it does not. `python -m onlyseen attention-statistics` writes them to a file.
    M_h = v_h / u_h, and u and v are their sums over the heads of the layer.

    The division by the sum makes the edit one of scores s before the softmax: s_j^h <- s_j^h + ln(1 + alpha (M_h - 1)).

    Layers go from `first` to `last`, as shares of the depth. The defaults give the paper's 5 ... 17 of 32
    (LLaVA-1.5-7B).

    Source: arXiv:2603.04908 (CVPR 2026).

    Deviations from the official code:
    - The code has statistics of 10,000 captions, and no licence. The code that measures them is not published. So u_h
      and v_h are means over all mentions, at the position whose output is the first token of the mention.
    - A head with M_h < 1 - 1/alpha has a negative weight in the code. Here the factor is at least 1e-6.
    - Layers follow the depth of the model. The code has numbers.
    - Tokens of the answer outside a sliding window do not count.
    - Batches and all kinds of sampling are edited too.
    """

    name = "adaiat"
    paper = "arXiv:2603.04908"
    official_code = "XianguiKang/AdaIAT, no licence"
    neutral = {"alpha": 0}
    needs_images = True
    reads_attention_statistics = True

    alpha: Annotated[
        float,
        Field(ge=0, le=100, description="Increase of the attention to the answer, times M - 1; 0 changes nothing."),
    ] = 6.0
    beta: Annotated[
        float,
        Field(ge=0, le=10, description="Place of the threshold: 0 is the attention in hallucinations, 1 elsewhere."),
    ] = 0.5
    first: FirstLayerShare = 5 / 32
    last: LastLayerShare = 17 / 32

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.layer not in self.select_layers(keys.layers):
            return scores
        hallucinated, real = (keys.statistics[name][keys.layer] for name in ("hallucinated", "real"))  # [heads]
        is_answer = keys.is_generated & keys.is_visible  # [..., keys]
        threshold = hallucinated.sum() + self.beta * (real.sum() - hallucinated.sum())
        is_low = self.measure_attention(scores, keys, is_answer) < threshold  # [...]
        factors = 1 + self.alpha * (real / hallucinated.clamp(min=TINY) - 1)
        increase = factors.clamp(min=LEAST_FACTOR).log()[:, None]
        is_edited = (is_answer & is_low[..., None])[..., None, :]
        return torch.where(is_edited, (scores.float() + increase).to(scores.dtype), scores)

    def measure_attention(self, scores: Tensor, keys: AttentionKeys, is_answer: Tensor) -> Tensor:
        """Measure the attention to the answer.

        Args:
            scores: [..., heads, keys] before mask and softmax.
            keys: The keys of the scores.
            is_answer: [..., keys] true for tokens of the answer.

        Returns:
            [...] means over the tokens of the answer, summed over the heads.
        """
        weights = scores.float().masked_fill(~keys.is_visible[..., None, :], -torch.inf).softmax(-1)
        sums = (weights * is_answer[..., None, :]).sum(dim=(-2, -1))
        return sums / is_answer.sum(-1).clamp(min=1)
