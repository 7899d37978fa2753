"""Instruction contrastive decoding: subtract what the model says under an instruction that misleads it."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from decoding.ask import Ask
from decoding.strategies.parameters import Contrast, Plausibility
from decoding.strategy import TEXT_SIDE, Step, Strategy
from decoding.tensors import contrast, only, plausible

ROLES = {
    "detector": "You are an object detector that recognises every object in the image.",
    "relations": "You are an object detector that recognises every object, with its shape, colour and relations.",
    "avoidant": "Avoid identifying or categorising any object in the image.",
    "confused": "You are a confused object detector that gives no more than a fuzzy impression of the image.",
    "overview": "Give no more than a general overview of the image.",
}


class ICD(Strategy):
    """z_f = (1 + alpha) z - alpha z_disturbed where p(w) >= beta max p, -inf elsewhere.

    z_disturbed sees the same pictures and question under an instruction that gives the model a role: a confused one
    makes it say what the language alone suggests, and that is subtracted. `place` is where the instruction goes:
    `system` instead of the system message, as for LLaVA; `prefix` before the question, after the picture. Families
    whose prompt is plain text (InstructBLIP) have it in front of the text in either case.
    Wang et al., ACL Findings 2024, arXiv:2403.18715.

    Deviations from the official code:
    - The five roles say what those of the code say in other words; `sentence` takes any other.
    - alpha is 1 for every model, as in the paper; the code's sampler falls back to 0.5 where it is not passed.
    - For InstructBLIP the code's best variant disturbs only what the Q-Former reads; here the language model reads it
      too, for a prompt is one text to every part of a model.
    - The code's third branch, with a noisy picture, is the stack `icd+vcd`.
    """

    name = "icd"
    paper = "arXiv:2403.18715"

    alpha: Contrast = 1.0
    beta: Plausibility = 0.1
    role: Annotated[
        Literal["detector", "relations", "avoidant", "confused", "overview"],
        Field(description="The disturbing instruction."),
        TEXT_SIDE,
    ] = "confused"
    sentence: Annotated[
        str | None, Field(min_length=1, max_length=4096, description="An instruction instead of the role's."), TEXT_SIDE
    ] = None
    place: Annotated[Literal["system", "prefix"], Field(description="Where the instruction goes."), TEXT_SIDE] = (
        "system"
    )

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        sentence = self.sentence or ROLES[self.role]
        if self.place == "system":
            return ask.branch(self, "disturbed", ask.prompt.with_system(sentence))
        return ask.branch(self, "disturbed", ask.prompt.with_question(f"{sentence} {ask.prompt.question}"))

    def logits(self, step: Step) -> Tensor:
        return only(contrast(step.scores, step.branches["icd/disturbed"], self.alpha), plausible(step.raw, self.beta))
