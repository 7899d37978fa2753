"""Dynamic correction decoding: add what the earlier layer that was surest of a candidate would have said."""

import math
from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from decoding.ask import Ask
from decoding.strategies.parameters import EarlyLayer, Normed
from decoding.strategy import Exits, Step, Strategy
from decoding.tensors import add, nucleus, only, top


class DeCo(Strategy):
    """z_f = z + alpha p* z_l* for the candidates, -inf elsewhere; p* = p_l*(c*) = max over layers l, candidates c.

    Models tend to know what they see a few layers before the end, and to be talked out of it by the language. p_l is
    what the head makes of the hidden state after l layers. The candidates are the `top_p` nucleus of the last layer's
    distribution, at most `top_k` of them. There is no second row: each layer costs one product with the head.
    Wang et al., ICLR 2025, arXiv:2410.11779.

    Layers go from `first` to `last`, as shares of the depth: the defaults give the paper's 20 ... 28 of 32 (LLaVA-1.5);
    its 15 ... 24 for InstructBLIP are 0.46875 and 0.75.

    Deviations from the official code:
    - Early states go through the final norm first, as the last one does; `normed` false takes them raw.
    - alpha is 0.6, as in the code; a table of its README has 0.5.
    - A batch, and any sampling, is corrected too.
    """

    name = "deco"
    paper = "arXiv:2410.11779"

    alpha: EarlyLayer = 0.6
    top_p: Annotated[float, Field(gt=0, le=1, description="Probability that the candidates hold.")] = 0.9
    top_k: Annotated[int, Field(ge=0, le=100_000, description="Most candidates; 0: any number.")] = 20
    first: Annotated[float, Field(ge=0, le=1, description="First early layer, as a share of the depth.")] = 20 / 32
    last: Annotated[float, Field(ge=0, le=1, description="Last early layer, as a share of the depth.")] = 28 / 32
    normed: Normed = True

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.first > self.last:
            raise ValueError("`first` lies after `last`")
        return self

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        return ask

    def exits(self, layers: int, tied: bool) -> Exits:
        first, last = (min(math.floor(share * layers + 0.5), layers - 1) for share in (self.first, self.last))
        return Exits(tuple(range(first, last + 1)), self.normed)

    def logits(self, step: Step) -> Tensor:
        assert step.early is not None, "exits are listened at"
        candidates = nucleus(step.raw, 1.0, self.top_p) & top(step.raw, self.top_k)
        surest = step.early.float().softmax(dim=-1).masked_fill(~candidates[..., None, :], 0.0).amax(dim=-1)
        sure, layer = surest.max(dim=-1, keepdim=True)  # [..., 1]
        early = step.early.take_along_dim(layer[..., None], dim=-2)[..., 0, :]
        return only(add(step.scores, sure.to(early.dtype) * early, self.alpha), candidates)
