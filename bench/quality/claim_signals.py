"""Claims of the captions of a study, and their mentions with the signals of `eval.analysis.detection`."""

import math

from pydantic import JsonValue

from decoding.outputs import Answer, CheckedClaim
from eval.analysis.detection import LabelledMention
from eval.analysis.detection import label_mentions as label_stored_answer
from eval.benchmarks.chair.score import CaptionScore
from eval.benchmarks.chair.task import build_detail
from eval.core.answer_store import StoredAnswer
from eval.core.statistics import Interval


def list_claims(answer: Answer) -> list[CheckedClaim]:
    """Return the claims of an answer, in the order in which they were sent."""
    return [claim for token in answer.tokens for claim in token.claims]


def summarize_interval(interval: Interval, scale: float = 100) -> dict[str, float | None]:
    """Return value and interval, in percent by default. JSON has no nan, so a bound without a value is None."""
    bounds = {name: float(getattr(interval, name)) for name in ("value", "low", "high")}
    return {name: None if math.isnan(bound) else round(scale * bound, 4) for name, bound in bounds.items()}


def label_mentions(scene: int, answer: Answer, score: CaptionScore) -> tuple[list[LabelledMention], int]:
    """Label the mentions of a caption that are claims.

    Args:
        scene: Index of the scene.
        answer: The caption, with claims, grounding and log-probabilities.
        score: Its score.

    Returns:
        The mentions, and the number of mentions that are no claims.
    """
    claims: list[JsonValue] = [
        {"start": claim.start, "end": claim.end, "probability": claim.probability} for claim in list_claims(answer)
    ]
    scores = [(token.text, token.chosen.logprob, token.grounding) for token in answer.tokens if token.chosen]
    stored = StoredAnswer(
        key="", question="", strategy="", text=answer.text, seconds=0, receipt={"claims": claims}, token_scores=scores
    )
    return label_stored_answer(scene, stored, build_detail(score))
