"""Plausibility cut: keep tokens that are nearly as likely as the likeliest one."""

from torch import Tensor

from decoding.logits_ops import mask_logits, plausibility_mask
from decoding.parameters import Plausibility
from decoding.strategy import Step, Strategy


class Truncate(Strategy):
    """Keep the tokens with p(w) >= beta max p. All others get -inf.

    This is the adaptive plausibility constraint of contrastive decoding, without the contrast. VCD, AGLA and most
    strategies like them contain it. As a control, it shows how much of their gain comes from the cut and not from the
    second branch. It never removes the likeliest token, so that greedy answers stay as they are.

    Source: Li et al., ACL 2023, arXiv:2210.15097.
    """

    name = "truncate"
    paper = "arXiv:2210.15097"
    neutral = {"beta": 0}
    uncut = {"beta": 0.0}

    beta: Plausibility = 0.1

    def logits(self, step: Step) -> Tensor:
        return mask_logits(step.scores, plausibility_mask(step.raw, self.beta))
