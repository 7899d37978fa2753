"""Probabilities of claims, from questions to the model: one forward pass a claim and view, after the cached image.

Source: the question is POPE's (arXiv:2305.10355). Questions are sent without the answer, as in chain-of-verification
(arXiv:2309.11495): a model that reads its own answer repeats it. They are about shifted copies of the image for a
similar reason: a model that has mistaken some pixels for an object mistakes the same pixels again. Shifted pixels fall
into other patches, so that the errors differ (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from decoding.claims.claim_extraction import Claim
from decoding.claims.questions import build_question
from decoding.outputs import Answer
from decoding.prompt import ImageInput, Prompt, Shift
from decoding.requests import GenerateRequest

YES = ("Yes", "yes")
NO = ("No", "no")
MAX_LOG_ODDS = 10.0
SHIFTS = (Shift(0.03, 0.03), Shift(-0.03, -0.03))


class ClaimProbabilities:
    """Probabilities of the claims of one answer. Equal questions are sent once.

    Attributes:
        wording: The question, with `{claim}` for the phrase and its article.
        debias: Share of the log-odds without the image that is subtracted from those with it, 0 to 1.
    """

    def __init__(self, prompt: Prompt, wording: str, debias: float, views: int) -> None:
        """Prepare the questions.

        Args:
            prompt: The prompt of the answer, which has the images.
            wording: The question.
            debias: Share of the log-odds without the image.
            views: Number of shifted copies of the images that each question is about, 0 to `len(SHIFTS)`. With 0 it
                is about the images themselves.
        """
        self.wording = wording
        self.debias = debias
        self._views = list_views(prompt.images, views)
        self._log_odds: dict[str, float] = {}  # question -> debiased log-odds of yes

    def build_question(self, claim: Claim) -> str:
        """Build the question about a claim."""
        return build_question(claim, self.wording)

    def build_requests(self, claims: Sequence[Claim]) -> list[GenerateRequest]:
        """Build the requests for the questions that have no answer yet.

        Returns:
            One request for each question and view, and with `debias` one for each question without an image.
        """
        conditions = [*self._views, ()] if self.debias else self._views
        return [
            GenerateRequest(Prompt.from_text(question, *images), scored_texts=(*YES, *NO), bypasses_queue_limit=True)
            for question in self._find_open_questions(claims)
            for images in conditions
        ]

    def add(self, claims: Sequence[Claim], answers: Sequence[Answer]) -> None:
        """Add the answers to `build_requests(claims)`."""
        odds = [log_odds(answer) for answer in answers]
        count = len(self._views) + bool(self.debias)
        for start, question in zip(range(0, len(odds), count), self._find_open_questions(claims), strict=True):
            with_image = sum(odds[start : start + len(self._views)]) / len(self._views)
            without = odds[start + count - 1] if self.debias else 0.0
            self._log_odds[question] = with_image - self.debias * without

    def get_probability(self, claim: Claim) -> float:
        """Return the probability of a claim whose question has been answered."""
        return 1 / (1 + math.exp(-self._log_odds[self.build_question(claim)]))

    def _find_open_questions(self, claims: Sequence[Claim]) -> list[str]:
        return list(dict.fromkeys(q for q in map(self.build_question, claims) if q not in self._log_odds))


def list_views(images: Sequence[ImageInput], views: int) -> list[tuple[ImageInput, ...]]:
    """Return shifted copies of the images, or the images themselves for 0 views."""
    shifted = [tuple(image.with_shift(shift) for image in images) for shift in SHIFTS[:views]]
    return shifted or [tuple(images)]


def log_odds(answer: Answer) -> float:
    """Return log P(yes) - log P(no) of an answer to a request for scored texts, each over its spellings.

    A strategy that cuts the vocabulary may rule out one of them, or both. The result is bounded, and 0 for both.
    """
    yes, no = (sum(math.exp(answer.text_logprobs[word]) for word in words) for words in (YES, NO))
    if not yes and not no:
        return 0.0
    if not yes or not no:
        return MAX_LOG_ODDS if yes else -MAX_LOG_ODDS
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, math.log(yes) - math.log(no)))
