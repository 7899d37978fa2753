"""Everything that a new strategy takes: one class in one file, and one line of `pyproject.toml`."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.ask import Ask
from decoding.strategy import Step, Strategy
from decoding.tensors import contrast, only, plausible


class Cautious(Strategy):
    """z_f = (1 + doubt) z - doubt z_blind where p(w) >= beta max p: what would be said without looking counts less."""

    name = "cautious"
    paper = "none"

    doubt: Annotated[float, Field(ge=0, le=10, description="Weight of what the model says without the picture.")] = 0.5
    beta: Annotated[float, Field(ge=0, le=1, description="Least probability, relative to the likeliest token.")] = 0.1

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        return ask.branch(self, "blind", ask.prompt.without_pictures())

    def logits(self, step: Step) -> Tensor:
        return only(contrast(step.scores, step.branches["cautious/blind"], self.doubt), plausible(step.raw, self.beta))
