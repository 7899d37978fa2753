"""Describe and respond: put the model's own description of the image before the question."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from decoding.requests import Answer, GenerateRequest, Prompt, SamplingParams
from decoding.strategies import code, vdgd
from decoding.strategy import TEXT_SIDE, Program, Strategy

STIC_PROMPT = "Detail the composition and subjects within the frame."


class DescriptionStyle(NamedTuple):
    """The prompt of a description, and the question that follows from it."""

    prompt: str  # {question} is replaced by the user's question
    question: str  # with {description} and {question}


STYLES = {
    "stic": DescriptionStyle(STIC_PROMPT, "Image description:\n{description}\n\n{question}"),
    "vdgd": DescriptionStyle(vdgd.DESCRIBE, vdgd.GROUNDED),
    "code": DescriptionStyle(code.DESCRIBE, "{description}\n{question}"),
}


class Describe(Strategy):
    """z = z(image, d + question), where d is the greedy answer of the model to a request for a description.

    The image stays in the prompt. Nothing acts on the logits z, so that the effect is that of the additional text. It
    is the second stage of STIC, applied to a model without STIC's training.

    The styles "vdgd" and "code" have the prompts of these strategies, and VDGD's own wording of the question. They are
    the controls of both: the same description, without the rule that they derive from it. CODE replaces the image by
    the description in a branch, whose prompt is that of the style "code" without the image.

    Source: Deng et al., NeurIPS 2024, arXiv:2405.19716.

    Deviations from the official code:
    - The description is greedy and at most 512 tokens long. The code has temperature 0.2 by default, and 1024 tokens.
    - The description sees the image. The script for MMBench leaves the image token out of its prompt. Then LLaVA
      ignores the image, and the model describes nothing that it sees.
    - The prompt of style "stic" is that of the script for MMBench. Other scripts read descriptions from files.
    - Where the description is empty, the question stays as it is.
    """

    name = "describe"
    paper = "arXiv:2405.19716"
    official_code = "yihedeng9/STIC, licence not checked"
    neutral = {"description_tokens": 0}
    needs_images = True

    style: Annotated[
        Literal["stic", "vdgd", "code"],
        Field(description="Strategy whose prompts are used, for the description and for the question."),
        TEXT_SIDE,
    ] = "stic"
    description_tokens: Annotated[
        int,
        Field(ge=0, le=8192, description="Maximum length of the description, in tokens; 0 turns it off."),
        TEXT_SIDE,
    ] = 512
    description_prompt: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4096,
            description="Prompt of the description instead of the style's; {question} is replaced by the question.",
        ),
        TEXT_SIDE,
    ] = None

    def run(self, request: GenerateRequest) -> Program:
        if self.description_tokens == 0:
            return request
        # Not `request.replace`: its branches and stack belong to the final answer, not to the description.
        describe = request.prompt.with_question(self.fill_prompt(request.prompt))
        described: Answer = yield GenerateRequest(describe, SamplingParams(max_tokens=self.description_tokens))
        description = described.text.strip()
        if not description:
            return request
        filled = STYLES[self.style].question.format(description=description, question=request.prompt.question)
        return request.replace(prompt=request.prompt.with_question(filled))

    def fill_prompt(self, prompt: Prompt) -> str:
        """Return the prompt of the description."""
        return (self.description_prompt or STYLES[self.style].prompt).replace("{question}", prompt.question)
