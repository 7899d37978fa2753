"""Statistics on cases with known results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from eval.core.metrics import Metric, RatioMetrics
from eval.core.statistics import (
    Bootstrap,
    adjust_holm,
    detection_indices,
    mcnemar_test,
    minimum_detectable_difference,
    permutation_p_values,
)

ACCURACY = Metric("accuracy", "Accuracy", {"right": 1}, {"n": 1}, per_question=True)
F1 = Metric("f1", "F1", {"tp": 2}, {"tp": 2, "fp": 1, "fn": 1})


def test_mcnemar_is_the_binomial_test_on_discordant_pairs() -> None:
    correct = np.array([True] * 9 + [False] * 2 + [True] * 30 + [False] * 5)
    reference = np.array([False] * 9 + [True] * 2 + [True] * 30 + [False] * 5)
    found = mcnemar_test(correct, reference)
    assert (found.gained, found.lost) == (9, 2)
    assert found.p == pytest.approx(binomtest(2, 11).pvalue)
    assert mcnemar_test(correct, correct).p == 1


def test_bootstrap_treats_answers_about_one_image_as_dependent() -> None:
    """Ten copies of each answer have no more information than one."""
    rng = np.random.default_rng(1)
    correct = rng.integers(0, 2, 100).astype(float)
    single = np.stack([np.ones(100), correct], 1)
    ratios = RatioMetrics.from_metrics([ACCURACY])
    once = Bootstrap.draw(100).estimate(single, ratios)[0]
    copied = Bootstrap.draw(100).estimate(single * 10, ratios)[0]
    assert once == pytest.approx(copied)
    assert once.standard_error == pytest.approx(math.sqrt(correct.mean() * (1 - correct.mean()) / 100), rel=0.1)


def test_differences_are_paired() -> None:
    """Equal errors cancel, so the interval of the difference is much narrower than that of a value."""
    rng = np.random.default_rng(2)
    correct = rng.integers(0, 2, 200).astype(float)
    better = correct.copy()
    better[:6] = 1
    counts = [np.stack([np.ones(200), each], 1) for each in (better, correct)]
    single_interval = Bootstrap.draw(200).estimate(counts[0], RatioMetrics.from_metrics([ACCURACY]))[0]
    paired = Bootstrap.draw(200).estimate_differences(counts[0], counts[1], RatioMetrics.from_metrics([ACCURACY]))[0]
    assert paired.standard_error < single_interval.standard_error / 3
    assert paired.low <= paired.value <= paired.high


def test_equal_resamples_give_no_interval() -> None:
    """Previously, the interval was [0, 0], as if the true difference were known."""
    counts = np.array([[6.0, 5.0], [6.0, 3.0], [6.0, 6.0]])
    ratios = RatioMetrics.from_metrics([ACCURACY])
    found = Bootstrap.draw(3).estimate_differences(counts, counts, ratios)[0]
    assert found.value == 0
    assert all(map(math.isnan, (found.low, found.high, found.standard_error)))
    assert minimum_detectable_difference(found.standard_error, 3) is None
    alone = Bootstrap.draw(1).estimate(counts[:1], ratios)[0]
    assert math.isnan(alone.low)


def test_permutation_test_detects_only_real_differences() -> None:
    rng = np.random.default_rng(3)
    ratios = RatioMetrics.from_metrics([F1])
    names = ratios.count_names
    plain = rng.integers(1, 5, (80, len(names))).astype(float)
    better = plain.copy()
    better[:, names.index("fp")] = 0
    assert permutation_p_values(better, plain, ratios)[0] < 0.02
    assert permutation_p_values(plain, plain, ratios) == [1.0]
    assert permutation_p_values(plain[rng.permutation(80)], plain, ratios)[0] > 0.05
    # One image gives no evidence.
    assert permutation_p_values(better[:1], plain[:1], ratios) == [1.0]


def test_a_ratio_with_denominator_zero_is_nan() -> None:
    found = Bootstrap.draw(3).estimate(np.zeros((3, 3)), RatioMetrics.from_metrics([F1]))[0]
    assert math.isnan(found.value)
    assert math.isnan(permutation_p_values(np.zeros((3, 3)), np.ones((3, 3)), RatioMetrics.from_metrics([F1]))[0])


def test_adjust_holm_skips_undefined_p_values() -> None:
    assert adjust_holm([0.01, 0.04, float("nan"), 0.03])[:2] == pytest.approx([0.03, 0.06])
    assert adjust_holm([]) == []


def test_adjust_holm_equals_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 20):
        for values in (rng.random(size), rng.random(size) / size**2, rng.integers(1, 4, size) / 10):
            assert adjust_holm(list(values)) == pytest.approx(list(multipletests(values, method="holm")[1]))


def test_minimum_detectable_difference_follows_the_standard_error() -> None:
    """With 110 discordant captions of 500, a power of 80 % needs about 6 points."""
    assert minimum_detectable_difference(math.sqrt(110) / 500, 500) == pytest.approx(0.059, abs=0.001)
    assert minimum_detectable_difference(0.0, 500) is None


def test_detection_indices_separate_bias_from_sensitivity() -> None:
    unbiased = detection_indices(80, 20, 80, 20)
    assert unbiased is not None
    assert unbiased.criterion == pytest.approx(0)
    assert unbiased.sensitivity == pytest.approx(1.66, abs=0.02)
    affirmative = detection_indices(95, 60, 40, 5)
    assert affirmative is not None
    assert affirmative.criterion < 0
    assert detection_indices(3, 0, 0, 1) is None


def test_a_harmonic_mean_of_two_ratios_is_estimated_and_tested() -> None:
    rates = ({"tn": 1.0}, {"negative": 1.0}), ({"tp": 1.0}, {"positive": 1.0})
    mean = RatioMetrics.from_metrics(
        [Metric("mean", "Mean", *rates[0], second=rates[1]), Metric("tnr", "T", *rates[0])]
    )
    columns = [mean.count_names.index(name) for name in ("tn", "negative", "tp", "positive")]
    counts, other = np.zeros((12, 4)), np.zeros((12, 4))
    counts[:, columns], other[:, columns] = [1, 1, 1, 1], [0, 1, 1, 1]
    other[:3, columns[0]] = 1
    assert mean.compute(other.sum(0)) == pytest.approx([2 * 0.25 / 1.25, 0.25])
    assert np.isnan(mean.compute(np.array([0, 1, 0, 1.0])[np.argsort(columns)])[0])  # both rates are 0
    assert mean.select([1]).compute(other.sum(0)) == pytest.approx([0.25])
    harmonic, plain = permutation_p_values(counts, other, mean)
    assert harmonic == plain < 0.05
    assert permutation_p_values(counts, counts, mean) == [1.0, 1.0]
