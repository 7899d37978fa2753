"""Assembly of global and local attention: add what the model says about the relevant pixels alone."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.ask import Ask, Heat, Picture, Relevance
from decoding.pictures import keep_relevant
from decoding.strategies.parameters import Plausibility
from decoding.strategy import PER_ROW, TEXT_SIDE, Program, Step, Strategy
from decoding.tensors import add, only, plausible

SHORT_ANSWER = (  # what benchmarks append to the question, and the matcher never sees
    "Please answer this question with one word.",
    "Answer the question using a single word or phrase.",
    "Answer the question with a single word or phrase.",
    "Answer with one word.",
)


class AGLA(Strategy):
    """z_f = z + alpha z_local where p(w) >= beta max p, -inf elsewhere.

    z_local sees the same text and a picture whose irrelevant pixels are black. What is relevant comes from a BLIP
    image-text matcher: Grad-CAM of its match score over the cross-attention to the patches, smoothed to pixels; the
    least relevant s/2 of the pixels go, where s is the matcher's similarity of picture and question.
    An et al., CVPR 2025, arXiv:2406.12718.

    Deviations from the official code:
    - z_local keeps a cache of its own. From the second token on, the code reads the main branch's cache in both, which
      leaves softmax((1 + alpha) z): the strategy `sharpen`.
    - The mask is applied at the picture's own size; the code squashes the masked picture, and only that, to a square.
    - A matcher without a preference masks nothing, and long questions are cut for the matcher; the code fails on both.
    - The one-word-answer request is taken off the question by its wording, where the code has it apart in its data.
    - Of several pictures each is masked by its own relevance, and greedy decoding is mixed too.
    """

    name = "agla"
    paper = "arXiv:2406.12718"

    alpha: Annotated[
        float, Field(ge=0, le=100, description="Weight of the masked picture; 0 turns it off."), PER_ROW
    ] = 2.0
    beta: Plausibility = 0.5
    text: Annotated[
        str | None,
        Field(min_length=1, max_length=4096, description="What to match instead of the user's question."),
        TEXT_SIDE,
    ] = None

    def run(self, ask: Ask) -> Program:
        text = self.text or without_short_answer(ask.prompt.question)
        masked: dict[Picture, Picture] = {}
        for picture in dict.fromkeys(ask.prompt.require_pictures(self.name)):
            heat: Heat = yield Relevance(picture, text)
            masked[picture] = keep_relevant(picture, heat)
        return ask.branch(self, "local", ask.prompt.map_pictures(masked.__getitem__))

    def logits(self, step: Step) -> Tensor:
        return only(add(step.scores, step.branches["agla/local"], self.alpha), plausible(step.raw, self.beta))


def without_short_answer(question: str) -> str:
    for request in SHORT_ANSWER:
        if question.rstrip().endswith(request):
            return question.rstrip().removesuffix(request).strip() or question
    return question
