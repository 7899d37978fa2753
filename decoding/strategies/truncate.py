"""The plausibility cut alone."""

from torch import Tensor

from decoding.strategies.parameters import Plausibility
from decoding.strategy import Step, Strategy
from decoding.tensors import only, plausible


class Truncate(Strategy):
    """Sample from the plausible tokens only: those with p(w) >= beta max p; all others get -inf.

    The adaptive plausibility constraint of contrastive decoding (arXiv:2210.15097), without the contrast. VCD, AGLA
    and most of their kind contain it, so this control shows how much of their gain is the cut and not the second
    branch. It never removes the likeliest token: greedy answers stay as they are.
    """

    name = "truncate"
    paper = "arXiv:2210.15097"

    beta: Plausibility = 0.1

    def logits(self, step: Step) -> Tensor:
        return only(step.scores, plausible(step.raw, self.beta))
