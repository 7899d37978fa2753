"""Assembly of global and local attention: add logits computed on the relevant image regions."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.image_ops import keep_relevant
from decoding.logits_ops import add
from decoding.parameters import Plausibility
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest, ImageInput, RelevanceMap, RelevanceRequest
from decoding.strategy import PER_ROW, TEXT_SIDE, Program, Step

SHORT_ANSWER = (  # suffixes that benchmarks append to the question; the matcher does not receive them
    "Please answer this question with one word.",
    "Answer the question using a single word or phrase.",
    "Answer the question with a single word or phrase.",
    "Answer with one word.",
)


class AGLA(PlausibleContrast):
    """z_f = z + alpha z_local where p(w) >= beta max p, -inf elsewhere.

    z_local, [vocab], comes from the same text and an image whose irrelevant pixels are black. A BLIP image-text matcher
    gives the relevance: Grad-CAM of its match score over the cross-attention to the patches, smoothed to pixels. The
    least relevant s/2 of the pixels are masked, where s is the matcher's similarity of image and question.

    Source: An et al., CVPR 2025, arXiv:2406.12718.

    Deviations from the official code:
    - z_local has a KV cache of its own. From the second token on, the code reads the main branch's cache in both, which
      gives softmax((1 + alpha) z): the strategy `sharpen`.
    - The mask is applied at the image's own size. The code squashes the masked image, and only that, to a square.
    - A matcher without a preference masks nothing, and long questions are cut for the matcher. The code fails on both.
    - A request for a one-word answer is removed from the question by its wording. The code has it apart in its data.
    - Each of several images is masked by its own relevance, and greedy decoding is changed too.
    """

    name = "agla"
    paper = "arXiv:2406.12718"
    official_code = "Lackel/AGLA, no licence"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Annotated[float, Field(ge=0, le=100, description="Weight of the masked image; 0 turns it off."), PER_ROW] = (
        2.0
    )
    beta: Plausibility = 0.5
    text: Annotated[
        str | None,
        Field(min_length=1, max_length=4096, description="Text to match, instead of the user's question."),
        TEXT_SIDE,
    ] = None

    def run(self, request: GenerateRequest) -> Program:
        text = self.text or without_short_answer(request.prompt.question)
        masked: dict[ImageInput, ImageInput] = {}
        for image in dict.fromkeys(request.prompt.images):
            relevance: RelevanceMap = yield RelevanceRequest(image, text)
            masked[image] = keep_relevant(image, relevance)
        return request.with_branch("local", request.prompt.map_images(masked.__getitem__))

    def contrast(self, step: Step) -> Tensor:
        return add(step.scores, step.branches["local"], self.alpha)


def without_short_answer(question: str) -> str:
    """Remove a request for a one-word answer from the end of a question."""
    for suffix in SHORT_ANSWER:
        if question.rstrip().endswith(suffix):
            return question.rstrip().removesuffix(suffix).strip() or question
    return question
