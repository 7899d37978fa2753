"""Decoding by contrasting layers: subtract what the model would say if it ended at an earlier layer."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from decoding.ask import Ask
from decoding.strategies.parameters import EarlyLayer, Normed, Plausibility
from decoding.strategy import Exits, Step, Strategy
from decoding.tensors import divergence, only, plausible, subtract

WIDEST = 20  # layers in a bucket


class DoLa(Strategy):
    """z_f = z - alpha z_j* where p(w) >= beta max p, -inf elsewhere; j* = argmax_j JSD(p || p_j) over early layers j.

    p_j is what the model's head makes of the hidden state after j layers: the layer that disagrees most with the last
    one knows least, and what it says comes off. The candidates are every second layer of a bucket: `low` 0 ... N/2,
    for long reasoning, `high` N/2 ... N, for short facts, of N layers; at most 20 layers wide, and a model whose head
    is its embedding starts at 2, where the embedding has been left behind. `layers` names them instead; one alone is a
    static contrast. There is no second row: each candidate costs one product with the head.
    Chuang et al., ICLR 2024, arXiv:2309.03883.

    Deviations from the official code:
    - Early states go through the final norm first, as the last one does. `normed` false is the code's raw state, which
      the head was never made for.
    - z for log p: the difference is one number a token, and alpha, 1 in the paper, can turn the contrast off.
    - Tokens below the cut get -inf, not -1000.
    """

    name = "dola"
    paper = "arXiv:2309.03883"

    bucket: Annotated[Literal["low", "high"], Field(description="Half of the model that candidates come from.")] = "low"
    layers: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1000)], ...] | None,
        Field(min_length=1, max_length=64, description="Candidates, as numbers of layers passed, instead of a bucket."),
    ] = None
    alpha: EarlyLayer = 1.0
    beta: Plausibility = 0.1
    normed: Normed = True

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        return ask

    def exits(self, layers: int, tied: bool) -> Exits:
        return Exits(self.layers or self.candidates(layers, tied), self.normed)

    def candidates(self, layers: int, tied: bool) -> tuple[int, ...]:
        if self.bucket == "high":
            return tuple(range(max(layers // 2, layers - WIDEST), layers, 2))
        first, end = min(2, layers // 2) if tied else 0, min(layers // 2, WIDEST)
        return tuple(range(first, end, 2)) or (first,)

    def logits(self, step: Step) -> Tensor:
        assert step.early is not None, "exits are listened at"
        apart = divergence(step.raw[..., None, :], step.early).argmax(dim=-1)  # [...]
        early = step.early.take_along_dim(apart[..., None, None], dim=-2)[..., 0, :]
        return only(subtract(step.scores, early, self.alpha), plausible(step.raw, self.beta))
