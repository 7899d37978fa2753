"""Compute probabilities of claims from questions to the model about views of the image.

Questions about one view run together, after its cached keys and values.

Source: the question is POPE's (arXiv:2305.10355). Questions are sent without the answer, as in chain-of-verification
(arXiv:2309.11495): a model that reads its own answer repeats it. They are about views for a similar reason: a model
that has mistaken some pixels for an object mistakes the same pixels again. The pixels of a shifted copy fall into other
patches, so that the errors differ (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from statistics import fmean

from decoding.claims.claim_extraction import Claim
from decoding.claims.questions import build_question
from decoding.outputs import Answer
from decoding.prompt import ImageInput, Prompt, Shift
from decoding.requests import GenerateRequest

YES = ("Yes", "yes")
NO = ("No", "no")
MAX_LOG_ODDS = 10.0
SURE_LOG_ODDS = 5.0  # p = 0.993
# In the order of the questions. None is the image itself, whose keys and values are cached.
VIEWS = (Shift(0.03, 0.03), None, Shift(-0.03, -0.03))


class ClaimProbabilities:
    """Probabilities of the claims of one answer. Equal questions are sent once.

    Attributes:
        template: The question, with `{claim}` for the phrase and its article.
        debias: Share of the log-odds without the image that is subtracted from those with it, 0 to 1.
    """

    def __init__(self, prompt: Prompt, template: str, debias: float, views: int) -> None:
        """Prepare the questions.

        Args:
            prompt: The prompt of the answer, which has the images.
            template: The question, with `{claim}` for the phrase and its article.
            debias: Share of the log-odds without the image.
            views: Most views of the images that a question is about, 0 to `len(VIEWS)`. With 0 it is about the images
                themselves.
        """
        self.template = template
        self.debias = debias
        self._views = build_views(prompt.images, views)
        self._log_odds: dict[str, float] = {}  # question -> debiased log-odds of yes

    def build_question(self, claim: Claim) -> str:
        """Build the question about a claim."""
        return build_question(claim, self.template)

    def compute(self, claims: Sequence[Claim]) -> Generator[list[GenerateRequest], list[Answer], None]:
        """Compute the probabilities of claims whose questions have no answer yet.

        A question is about one view after the other, and about the next one only where its answers are unsure.

        Yields:
            Requests that can run together. The reply has their answers.
        """
        questions = list(dict.fromkeys(q for q in map(self.build_question, claims) if q not in self._log_odds))
        blind = questions if self.debias else []
        seen: dict[str, list[float]] = {question: [] for question in questions}
        unseen: dict[str, float] = {}
        for images in self._views:
            unsure = [question for question in questions if not is_sure(seen[question])]
            if not unsure:
                break
            odds = yield from compute_log_odds_together([(q, images) for q in unsure] + [(q, ()) for q in blind])
            for question, each in zip(unsure, odds, strict=False):
                seen[question].append(each)
            unseen |= zip(blind, odds[len(unsure) :], strict=True)
            blind = []
        for question in questions:
            self._log_odds[question] = fmean(seen[question]) - self.debias * unseen.get(question, 0.0)

    def get_probability(self, claim: Claim) -> float:
        """Return the probability of a claim whose question has been answered."""
        return 1 / (1 + math.exp(-self._log_odds[self.build_question(claim)]))


def is_sure(log_odds: Sequence[float]) -> bool:
    """Return whether the mean of the log-odds about some views needs no further view."""
    return bool(log_odds) and abs(fmean(log_odds)) >= SURE_LOG_ODDS


def compute_log_odds_together(
    questions: Sequence[tuple[str, tuple[ImageInput, ...]]],
) -> Generator[list[GenerateRequest], list[Answer], list[float]]:
    """Compute the log-odds of yes for questions that run together, each about images.

    Yields:
        One request for each question.

    Returns:
        The log-odds of yes for each question.
    """
    answers = yield [
        GenerateRequest(Prompt.from_text(question, *images), scored_texts=(*YES, *NO), bypasses_queue_limit=True)
        for question, images in questions
    ]
    return [compute_log_odds(answer) for answer in answers]


def build_views(images: Sequence[ImageInput], views: int) -> list[tuple[ImageInput, ...]]:
    """Build the images of the first views, or the images themselves for 0 views."""
    shifts = VIEWS[:views] or (None,)
    return [tuple(image if shift is None else image.with_shift(shift) for image in images) for shift in shifts]


def count_copies(views: int) -> int:
    """Count the copies of each image among the first views."""
    return sum(shift is not None for shift in VIEWS[:views])


def compute_log_odds(answer: Answer) -> float:
    """Return log P(yes) - log P(no) of an answer to a request for scored texts, each over its spellings.

    A strategy that cuts the vocabulary may rule out one of them, or both. The result is bounded, and 0 for both.
    """
    yes, no = (sum(math.exp(answer.text_logprobs[word]) for word in words) for words in (YES, NO))
    if not yes and not no:
        return 0.0
    if not yes or not no:
        return MAX_LOG_ODDS if yes else -MAX_LOG_ODDS
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, math.log(yes) - math.log(no)))
