"""Instruction contrastive decoding: subtract logits computed under a misleading instruction."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.parameters import Contrast
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest
from decoding.strategy import TEXT_SIDE, Step

ROLES = {
    "detector": "You are an object detector that recognises every object in the image.",
    "relations": "You are an object detector that recognises every object, with its shape, colour and relations.",
    "avoidant": "Avoid identifying or categorising any object in the image.",
    "confused": "You are a confused object detector that gives no more than a fuzzy impression of the image.",
    "overview": "Give no more than a general overview of the image.",
}


class ICD(PlausibleContrast):
    """z_f = (1 + alpha) z - alpha z_disturbed where p(w) >= beta max p, -inf elsewhere.

    z_disturbed comes from the same images and question under an instruction that gives the model a role. A confused
    role raises tokens that the language alone suggests, and these are subtracted. `place` selects where the instruction
    goes: `system` replaces the system message, as for LLaVA; `prefix` puts it before the question, after the image.
    Families whose prompt is plain text (InstructBLIP) have it in front of the text in both cases.

    Source: Wang et al., ACL Findings 2024, arXiv:2403.18715.

    Deviations from the official code:
    - The five roles have the content of the code's roles in other words. `sentence` takes any other.
    - alpha is 1 for every model, as in the paper. The code's sampler falls back to 0.5 where it is not passed.
    - For InstructBLIP, the code's best variant changes the text of the Q-Former only. Here the language model reads the
      instruction too, because a prompt is one text for every part of a model.
    - The code's third branch, with a noised image, is the stack `icd+vcd`.
    """

    name = "icd"
    paper = "arXiv:2403.18715"
    official_code = "p1k0pan/ICD, licence not checked"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Contrast = 1.0
    role: Annotated[
        Literal["detector", "relations", "avoidant", "confused", "overview"],
        Field(description="The disturbing instruction."),
        TEXT_SIDE,
    ] = "confused"
    sentence: Annotated[
        str | None,
        Field(min_length=1, max_length=4096, description="An instruction that replaces the role's."),
        TEXT_SIDE,
    ] = None
    place: Annotated[Literal["system", "prefix"], Field(description="Where the instruction goes."), TEXT_SIDE] = (
        "system"
    )

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        sentence = self.sentence or ROLES[self.role]
        if self.place == "system":
            return request.with_branch("disturbed", request.prompt.with_system(sentence))
        return request.with_branch("disturbed", request.prompt.with_question(f"{sentence} {request.prompt.question}"))

    def contrast(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["disturbed"], self.alpha)
