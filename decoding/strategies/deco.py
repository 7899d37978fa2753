"""Dynamic correction decoding: add the logits of the earlier layer that is surest of a candidate."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.logits_ops import add, mask_logits, top_k_mask, top_p_mask
from decoding.parameters import EarlyLayer, LayerRange, Normed
from decoding.strategy import EarlyExits, Step, Strategy


class DeCo(LayerRange, Strategy):
    """z_f = z + alpha p* z_l* for the candidates, -inf elsewhere; p* = p_l*(c*) = max over layers l and candidates c.

    Models tend to recognise an object a few layers before the end, where later layers suppress it. z_l, [vocab], is the
    output of the head on the hidden state after l layers, and p_l its softmax. The candidates are the `top_p` nucleus
    of the last layer's distribution, at most `top_k` of them. There is no second row: each layer costs one product with
    the head.

    Layers go from `first` to `last`, as shares of the depth. The defaults give the paper's 20 ... 28 of 32 (LLaVA-1.5).
    Its 15 ... 24 for InstructBLIP are 0.46875 and 0.75.

    Source: Wang et al., ICLR 2025, arXiv:2410.11779. alpha is that of the code. A table of its README has 0.5.

    Deviations from the official code:
    - Batches and all kinds of sampling are corrected too.
    - `normed` false, which skips the final norm, is an addition.
    """

    name = "deco"
    paper = "arXiv:2410.11779"
    official_code = "zjunlp/Deco, licence not checked"
    neutral = {"alpha": 0, "top_p": 1, "top_k": 0}
    needs_images = True

    alpha: EarlyLayer = 0.6
    top_p: Annotated[float, Field(gt=0, le=1, description="Total probability of the candidates.")] = 0.9
    top_k: Annotated[int, Field(ge=0, le=100_000, description="Maximum number of candidates; 0 sets no limit.")] = 20
    first: Annotated[float, Field(ge=0, le=1, description="First early layer, as a share of the depth.")] = 20 / 32
    last: Annotated[float, Field(ge=0, le=1, description="Last early layer, as a share of the depth.")] = 28 / 32
    normed: Normed = True

    def early_exit_layers(self, layers: int, tied: bool) -> EarlyExits:
        return EarlyExits(tuple(self.select_layers(layers)), self.normed)

    def logits(self, step: Step) -> Tensor:
        assert step.early_logits is not None, "the strategy selects early layers"
        candidates = top_p_mask(step.raw, 1.0, self.top_p) & top_k_mask(step.raw, self.top_k)
        confidence = step.early_logits.float().softmax(dim=-1).masked_fill(~candidates[..., None, :], 0.0).amax(dim=-1)
        best, layer = confidence.max(dim=-1, keepdim=True)  # [..., 1]
        early = step.early_logits.take_along_dim(layer[..., None], dim=-2)[..., 0, :]
        return mask_logits(add(step.scores, best.to(early.dtype) * early, self.alpha), candidates)
