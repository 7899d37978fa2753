"""Verdicts of the comparison."""

from __future__ import annotations

from eval.analysis.comparison import decide_verdict
from eval.core.metrics import Metric
from eval.core.results import Difference

ACCURACY = Metric("accuracy", "Accuracy", {"right": 1}, {"n": 1}, per_question=True)


def test_a_verdict_needs_test_and_difference_of_the_same_sign() -> None:
    """Accuracy counts a shared question in each split, McNemar's test counts it once."""
    gain = Difference(value=0.02, low=0.01, high=0.03, test="mcnemar", p=0.001, gained=40, lost=12)
    assert decide_verdict(ACCURACY, gain) == "better"
    assert decide_verdict(ACCURACY, gain.model_copy(update={"gained": 12, "lost": 40})) == "unclear"
