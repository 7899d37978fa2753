"""Base of the strategies that contrast branches among plausible tokens."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from decoding.logits_ops import mask_logits, plausibility_mask
from decoding.parameters import Plausibility
from decoding.strategy import Step, Strategy


class PlausibleContrast(Strategy):
    """z_f = contrast(z, branches) where p(w) >= beta max p, -inf elsewhere.

    p are the probabilities of the main row. Where only one token passes the cut, its probability is 1, whatever the
    branches give. With `lazy`, the branches do not run at such a step. The output is the same.
    """

    uncut: ClassVar[Mapping[str, Any]] = {"beta": 0.0}

    beta: Plausibility = 0.1
    lazy: Annotated[
        bool,
        Field(
            description="Run the branches only at steps with more than one plausible token. "
            "The output is the same. vLLM runs them at every step."
        ),
    ] = False

    def contrast(self, step: Step) -> Tensor:
        """Return the [..., vocab] scores before the cut.

        Raises:
            NotImplementedError: The strategy does not define the contrast.
        """
        raise NotImplementedError(f"{self.name} does not define `contrast`")

    def has_lazy_branches(self) -> bool:
        return self.lazy

    def needs_branches(self, raw: Tensor) -> Tensor:
        if not self.lazy:
            return super().needs_branches(raw)
        return plausibility_mask(raw, self.beta).sum(dim=-1) > 1

    def logits(self, step: Step) -> Tensor:
        scores = self.contrast(step) if step.branches else step.scores
        return mask_logits(scores, plausibility_mask(step.raw, self.beta))
