"""Scores, thresholds and areas of the yes-bias control, on a worked example of 16 questions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from eval.core.statistics import mcnemar_test
from eval.core.yes_bias import (
    SampledDecoding,
    match_yes_count,
    settle_ties,
    weighted_auroc,
)
from eval.core.yes_score import ListedTokens, YesScore, compute_yes_score

# Label, score of plain decoding, and answer of a strategy.
ROWS = [
    (1, 2.2, 1), (0, -1.9, 0), (1, -0.4, 1), (0, -0.2, 1), (1, 0.7, 1), (0, 0.3, 0), (1, -0.9, 1), (0, -2.5, 0),
    (1, 1.4, 1), (0, -0.7, 0), (1, -1.2, 0), (0, -3.0, 0), (1, 3.1, 1), (0, 1.1, 1), (1, -0.1, 1), (0, -1.6, 0),
]  # fmt: skip
LABELS = np.array([row[0] for row in ROWS], bool)
SCORES = np.array([row[1] for row in ROWS])
ANSWERS = np.array([row[2] for row in ROWS], bool)


def compute_rates(shares: np.ndarray, labels: np.ndarray = LABELS) -> tuple[float, float, float]:
    """Compute accuracy, F1 and yes ratio from the share of yes of each question."""
    tp, fp, fn = (labels * shares).sum(), (~labels * shares).sum(), (labels * (1 - shares)).sum()
    accuracy = (tp + (~labels * (1 - shares)).sum()) / len(labels)
    return float(accuracy), float(2 * tp / (2 * tp + fp + fn)), float(shares.mean())


@pytest.mark.parametrize(
    ("top", "value", "kind"),
    [
        ([("Yes", -0.2), ("No", -2.0), ("yes", -3.0), ("The", -4.0)], 1.859033, "exact"),
        ([("Yes", -0.01), ("The", -5.0)], 4.99, "at least"),
        ([("There", -0.1), ("A", -2.5)], None, "missing"),
        ([(" no", -0.3), ("No.", -2.3), (" Yes", -2.4)], -2.226928, "exact"),
        ([("No", -0.01), ("The", -5.0)], -4.99, "at most"),
        ([("No", -0.01), ("Yes", -9999.0), ("The", -5.0)], -4.99, "at most"),
        ([], None, "missing"),
    ],
)
def test_score_is_a_difference_of_logarithms(top: list[tuple[str, float]], value: float | None, kind: str) -> None:
    found = compute_yes_score([ListedTokens("Yes", top)])
    assert found.kind == kind
    assert found.value == (value if value is None else pytest.approx(value, abs=1e-6))


def test_tokens_without_letters_are_skipped_and_counted() -> None:
    top = [("Yes", -0.2), ("No", -2.0)]
    quoted = [ListedTokens("\n", [("Yes", -9.0)]), ListedTokens(' "', [("No", -9.0)]), ListedTokens("No", top)]
    assert compute_yes_score(quoted) == YesScore(value=1.8, kind="exact", skipped=2)
    assert compute_yes_score(quoted[:2]) == YesScore(kind="missing", skipped=2)


def test_threshold_gives_the_yes_ratio_of_the_strategy() -> None:
    threshold, shares = match_yes_count(SCORES, int(ANSWERS.sum()))
    assert threshold == pytest.approx(-0.55)
    assert compute_rates(SCORES > 0) == pytest.approx((0.625, 0.571429, 0.375), abs=1e-6)
    assert compute_rates(shares) == pytest.approx((0.6875, 0.705882, 0.5625), abs=1e-6)
    assert compute_rates(ANSWERS) == pytest.approx((0.8125, 0.823529, 0.5625), abs=1e-6)
    settled = settle_ties(shares, [str(number) for number in range(16)], int(ANSWERS.sum()))
    assert list(settled) == list(shares == 1)
    result = mcnemar_test(ANSWERS == LABELS, settled == LABELS)
    assert (result.gained, result.lost, result.p) == (2, 0, 0.5)
    assert result.p == binomtest(0, 2).pvalue


def test_ties_at_the_threshold_share_the_places_that_are_left() -> None:
    threshold, shares = match_yes_count([2, 1, 1, 1, 0], 2)
    assert threshold == 1
    assert list(shares) == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0])
    labels = np.array([1, 1, 0, 0, 0], bool)
    assert compute_rates(shares, labels) == pytest.approx((0.733333, 0.666667, 0.4), abs=1e-6)
    settled = settle_ties(shares, list("abcde"), 2)
    assert settled.sum() == 2
    assert settled[0]
    assert not settled[4]
    others = {tuple(settle_ties(shares, list("abcde"), 2, seed)) for seed in range(20)}
    assert len(others) == 3  # the seed decides which of three questions is yes


def test_all_and_no_questions_may_be_yes() -> None:
    assert match_yes_count(SCORES, 0).threshold == math.inf
    assert match_yes_count(SCORES, 0).shares.sum() == 0
    assert match_yes_count(SCORES, 16).threshold == -math.inf
    assert match_yes_count(SCORES, 16).shares.sum() == 16


def test_contrast_with_a_constant_branch_is_a_threshold() -> None:
    alpha, branch = 1.0, -2.0
    contrast = (1 + alpha) * SCORES - alpha * branch
    assert list(contrast > 0) == list(SCORES + 1 > 0)


@pytest.mark.parametrize(
    ("temperature", "cut", "accuracy", "f1", "yes_ratio"),
    [
        (1, 0, 0.63727, 0.619491, 0.453277),
        (1, 0.1, 0.647669, 0.628447, 0.448266),
        (1, 0.2, 0.662036, 0.642883, 0.446368),
        (1, 0.5, 0.678233, 0.6545, 0.431309),
        (1 / 3, 0.5, 0.661984, 0.632649, 0.420145),
        (1, 1, 0.625, 0.571429, 0.375),
    ],
)
def test_sampled_answers_follow_from_the_score(
    temperature: float, cut: float, accuracy: float, f1: float, yes_ratio: float
) -> None:
    shares = SampledDecoding(temperature, cut).compute_yes_shares(SCORES)
    assert compute_rates(shares) == pytest.approx((accuracy, f1, yes_ratio), abs=1e-6)


@pytest.mark.parametrize(("temperature", "cut"), [(1, 0), (0.5, 0), (1, 0.1)])
def test_constant_gives_the_expected_number_of_sampled_yes(temperature: float, cut: float) -> None:
    decoding = SampledDecoding(temperature, cut)
    expected = float(decoding.compute_yes_shares(SCORES + 0.7).sum())
    threshold, shares = decoding.match_yes_count(SCORES, expected)
    assert decoding.compute_yes_shares(SCORES - threshold).sum() == pytest.approx(expected)
    assert shares.sum() == pytest.approx(expected)
    assert decoding.match_yes_count(SCORES, 0).threshold == math.inf
    assert decoding.match_yes_count(SCORES, 16).shares.sum() == 16


def test_questions_at_a_step_of_the_cut_share_what_is_left() -> None:
    """Two scores of 0 jump together from 1 / 11 to 0 when the threshold passes ln 10."""
    threshold, shares = SampledDecoding(1, 0.1).match_yes_count(np.array([5.0, 0.0, 0.0, -5.0]), 1.05)
    assert threshold == pytest.approx(math.log(10), abs=1e-6)
    assert list(shares) == pytest.approx([1, 0.025, 0.025, 0], abs=1e-6)


def test_top_p_removes_the_less_likely_word() -> None:
    shares = SampledDecoding(1, top_p=0.9).compute_yes_shares(SCORES)
    assert shares[0] == 1  # p(yes) is 0.9002
    assert 0 < shares[1] < 0.14  # p(no) is 0.87


def test_area_counts_pairs_and_half_the_ties() -> None:
    once = np.ones((1, 16))
    assert weighted_auroc(SCORES, LABELS, once, np.arange(16)) == pytest.approx([0.78125])
    rounded = np.round(SCORES)
    pairs = [(p > q) + 0.5 * (p == q) for p in rounded[LABELS] for q in rounded[~LABELS]]
    assert weighted_auroc(rounded, LABELS, once, np.arange(16))[0] == pytest.approx(np.mean(pairs))


def test_area_of_a_resample_is_that_of_repeated_questions() -> None:
    weights, images = np.random.default_rng(0).integers(0, 3, (250, 4)), np.arange(16) // 4
    found = weighted_auroc(np.round(SCORES), LABELS, weights.astype(float), images)
    for index in (0, 120, 249):
        repeated = np.repeat(np.arange(16), weights[index][images])
        scores, labels = np.round(SCORES)[repeated], LABELS[repeated]
        alone = weighted_auroc(scores, labels, np.ones((1, 1)), np.zeros(len(repeated), int))
        assert found[index] == pytest.approx(alone[0], nan_ok=True)
    assert math.isnan(weighted_auroc(SCORES[:1], LABELS[:1], np.ones((1, 1)), images)[0])
