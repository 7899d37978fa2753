"""Against cases whose answers are known by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from eval.comparison import verdict
from eval.metrics import Metric, ratios
from eval.results import Difference
from eval.statistics import Bootstrap, detectable, exchange, holm, mcnemar, signal

ACCURACY = Metric("accuracy", "Accuracy", {"right": 1}, {"n": 1}, per_question=True)
F1 = Metric("f1", "F1", {"tp": 2}, {"tp": 2, "fp": 1, "fn": 1})


def test_mcnemar_is_the_binomial_test_on_discordant_pairs() -> None:
    right = np.array([True] * 9 + [False] * 2 + [True] * 30 + [False] * 5)
    reference = np.array([False] * 9 + [True] * 2 + [True] * 30 + [False] * 5)
    found = mcnemar(right, reference)
    assert (found.gained, found.lost) == (9, 2)
    assert found.p == pytest.approx(binomtest(2, 11).pvalue)
    assert mcnemar(right, right).p == 1


def test_questions_of_one_picture_are_not_independent() -> None:
    """Ten copies of each answer carry no more information than one."""
    rng = np.random.default_rng(1)
    right = rng.integers(0, 2, 100).astype(float)
    single = np.stack([np.ones(100), right], 1)
    both = ratios([ACCURACY])
    once = Bootstrap.of(100).values(single, both)[0]
    copied = Bootstrap.of(100).values(single * 10, both)[0]
    assert once == pytest.approx(copied)
    assert once.error == pytest.approx(math.sqrt(right.mean() * (1 - right.mean()) / 100), rel=0.1)


def test_differences_are_paired() -> None:
    """Equal errors cancel: the interval of the difference is far narrower than that of either."""
    rng = np.random.default_rng(2)
    right = rng.integers(0, 2, 200).astype(float)
    better = right.copy()
    better[:6] = 1
    counts = [np.stack([np.ones(200), each], 1) for each in (better, right)]
    alone = Bootstrap.of(200).values(counts[0], ratios([ACCURACY]))[0]
    paired = Bootstrap.of(200).differences(counts[0], counts[1], ratios([ACCURACY]))[0]
    assert paired.error < alone.error / 3
    assert paired.low <= paired.value <= paired.high


def test_exchange_finds_a_difference_and_does_not_invent_one() -> None:
    rng = np.random.default_rng(3)
    names = ratios([F1]).names
    plain = rng.integers(1, 5, (80, len(names))).astype(float)
    better = plain.copy()
    better[:, names.index("fp")] = 0
    assert exchange(better, plain, ratios([F1]))[0] < 0.02
    assert exchange(plain, plain, ratios([F1])) == [1.0]
    assert exchange(plain[rng.permutation(80)], plain, ratios([F1]))[0] > 0.05
    assert exchange(better[:1], plain[:1], ratios([F1])) == [1.0]  # one picture shows nothing


def test_a_ratio_without_a_value_is_none_of_the_numbers() -> None:
    found = Bootstrap.of(3).values(np.zeros((3, 3)), ratios([F1]))[0]
    assert math.isnan(found.value)
    assert math.isnan(exchange(np.zeros((3, 3)), np.ones((3, 3)), ratios([F1]))[0])


def test_a_test_that_points_the_other_way_makes_nothing_better() -> None:
    """Accuracy counts a question in each split that shares it, McNemar's test once."""
    gain = Difference(value=0.02, low=0.01, high=0.03, test="mcnemar", p=0.001, gained=40, lost=12)
    assert verdict(ACCURACY, gain) == "better"
    assert verdict(ACCURACY, gain.model_copy(update={"gained": 12, "lost": 40})) == "unclear"


def test_holm() -> None:
    assert holm([0.01, 0.04, float("nan"), 0.03])[:2] == pytest.approx([0.03, 0.06])
    assert holm([]) == []


def test_the_least_difference_that_500_captions_can_show() -> None:
    """With 110 discordant captions of 500 about 6 points are needed for a power of 80 %."""
    assert detectable(math.sqrt(110) / 500, 500) == pytest.approx(0.059, abs=0.001)
    assert detectable(0.0, 500) is None


def test_sensitivity_and_bias() -> None:
    unbiased = signal(80, 20, 80, 20)
    assert unbiased is not None
    assert unbiased.criterion == pytest.approx(0)
    assert unbiased.sensitivity == pytest.approx(1.66, abs=0.02)
    affirmative = signal(95, 60, 40, 5)
    assert affirmative is not None
    assert affirmative.criterion < 0
    assert signal(3, 0, 0, 1) is None
