"""Confidence intervals and significance tests.

Images are the sampling unit: all answers about one image are resampled together. The tests come from scipy and
statsmodels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower

from eval.core.metrics import Floats, RatioMetrics, compute_harmonic_mean, divide_or_nan

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0
ROUNDING_ERROR = 1e-12

Indices = NDArray[np.int64]


class Interval(NamedTuple):
    """A value with its confidence interval and its standard error."""

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class Bootstrap:
    """Images resampled with replacement.

    All strategies use the same resamples, so that differences are paired.

    Attributes:
        weights: How often each image occurs in each resample, shape [resamples, images].
    """

    weights: Floats

    @classmethod
    def draw(cls, images: int) -> Bootstrap:
        """Draw the resamples with a fixed seed."""
        rng = np.random.default_rng(SEED)
        return cls(rng.multinomial(images, np.full(images, 1 / images), RESAMPLES).astype(np.float64))

    def estimate(self, counts: Floats, ratios: RatioMetrics) -> list[Interval]:
        """Estimate every metric.

        Args:
            counts: Shape [images, counts].
            ratios: The metrics.

        Returns:
            One interval for each metric.
        """
        return percentile_intervals(ratios.compute(counts.sum(0)), ratios.compute(self.weights @ counts))

    def estimate_differences(self, counts: Floats, reference: Floats, ratios: RatioMetrics) -> list[Interval]:
        """Estimate the paired difference of every metric to a reference.

        Args:
            counts: Shape [images, counts].
            reference: Shape [images, counts], the same images.
            ratios: The metrics.

        Returns:
            One interval for each metric.
        """
        observed = ratios.compute(counts.sum(0)) - ratios.compute(reference.sum(0))
        replicates = ratios.compute(self.weights @ counts) - ratios.compute(self.weights @ reference)
        return percentile_intervals(observed, replicates)


def percentile_intervals(observed: Floats, replicates: Floats) -> list[Interval]:
    """Compute percentile intervals; replicates without a value are left out.

    If all replicates are equal, the resamples do not bound the true value. Answers that do not differ in 60 images may
    differ in the next one. So there is no interval instead of one of zero width.

    Args:
        observed: Shape [metrics].
        replicates: Shape [resamples, metrics].

    Returns:
        One interval for each metric, with nan for the bounds and the standard error if there is none.
    """
    tail = (1 - CONFIDENCE) / 2
    intervals: list[Interval] = []
    for value, column in zip(observed, replicates.T, strict=True):
        valid = column[np.isfinite(column)]
        if np.isnan(value) or len(valid) < 2 or np.ptp(valid) < ROUNDING_ERROR:
            intervals.append(Interval(float(value), np.nan, np.nan, np.nan))
            continue
        low, high = np.quantile(valid, [tail, 1 - tail])
        intervals.append(Interval(float(value), float(low), float(high), float(valid.std(ddof=1))))
    return intervals


def permutation_p_values(
    counts: Floats, reference: Floats, ratios: RatioMetrics, resamples: int | None = None
) -> list[float]:
    """Test every metric by exchanging the two strategies within images.

    Args:
        counts: Shape [images, counts].
        reference: Shape [images, counts], the same images.
        ratios: The metrics.
        resamples: Number of exchanges, the observed one included, `RESAMPLES` by default. No p-value is below twice its
            inverse.

    Returns:
        One p-value for each metric. Under the null hypothesis the strategies are exchangeable within every image.
    """
    both = np.concatenate([counts, reference])
    first, second = np.arange(len(counts)), np.arange(len(counts), len(both))
    p_values: list[float] = []
    for column, metric in enumerate(ratios.metrics):
        pairs = [(both @ ratios.numerators[:, column], both @ ratios.denominators[:, column])]
        if metric.second is not None:
            pairs.append((both @ ratios.second_numerators[:, column], both @ ratios.second_denominators[:, column]))
        p_values.append(_permutation_p_value(pairs, first, second, resamples or RESAMPLES))
    return p_values


def _permutation_p_value(
    pairs: Sequence[tuple[Floats, Floats]], first: Indices, second: Indices, resamples: int
) -> float:
    """Test a ratio of sums, or the harmonic mean of two.

    Args:
        pairs: Numerator and denominator of each ratio, each of shape [both strategies x images].
        first: Indices of one strategy.
        second: Indices of the other one.
        resamples: Number of exchanges.

    Returns:
        The p-value, nan for a difference without a value.
    """
    if all(np.array_equal(each[first], each[second]) for pair in pairs for each in pair):
        return 1.0
    if len(first) < 2:  # With one image, every exchange gives the same absolute difference.
        return 1.0

    def compute(indices: Indices, axis: int) -> Floats:
        ratios = [
            divide_or_nan(numerator[indices].sum(axis), denominator[indices].sum(axis))
            for numerator, denominator in pairs
        ]
        return ratios[0] if len(ratios) == 1 else compute_harmonic_mean(ratios[0], ratios[1])

    def difference(first: Indices, second: Indices, axis: int) -> Floats:
        return compute(first, axis) - compute(second, axis)

    if np.isnan(difference(first, second, 0)):
        return float("nan")
    test = permutation_test(
        (first, second),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples - 1,
        batch=200,
        rng=np.random.default_rng(SEED),
    )
    return float(test.pvalue)


class McNemarResult(NamedTuple):
    """Discordant questions and the p-value of McNemar's test."""

    gained: int  # correct only under the strategy
    lost: int  # correct only under the reference
    p: float


def mcnemar_test(correct: NDArray[np.bool_], reference: NDArray[np.bool_]) -> McNemarResult:
    """Run the exact McNemar test on paired outcomes.

    Args:
        correct: Outcomes of the strategy, shape [questions].
        reference: Outcomes of the reference, shape [questions].

    Returns:
        The discordant counts and the p-value.
    """
    gained, lost = int((correct & ~reference).sum()), int((~correct & reference).sum())
    table = [[int((correct & reference).sum()), gained], [lost, int((~correct & ~reference).sum())]]
    return McNemarResult(gained, lost, float(mcnemar(table, exact=True).pvalue))


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple testing after Holm (1979); nan stays nan."""
    # statsmodels' multipletests gives the same, but runs a full garbage collection per call, a quarter of a second.
    values = np.array(p_values, float)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # nan is sorted to the end
    scaled = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1))
    values[order] = np.minimum(scaled, 1)
    return [float(value) for value in values]


def minimum_detectable_difference(standard_error: float, images: int, *, power: float = 0.8) -> float | None:
    """Compute the smallest true difference that a run of this size detects.

    Args:
        standard_error: Standard error of the observed difference.
        images: Number of images.
        power: Probability of the detection.

    Returns:
        The difference, or None if nothing varied or there are fewer than 3 images.
    """
    if not np.isfinite(standard_error) or standard_error == 0 or images < 3:
        return None
    effect = TTestPower().solve_power(nobs=images, alpha=1 - CONFIDENCE, power=power, alternative="two-sided")
    return float(effect) * standard_error * float(np.sqrt(images))


class DetectionIndices(NamedTuple):
    """Indices of signal detection theory."""

    sensitivity: float  # d': how well answers separate present from absent objects
    criterion: float  # positive: biased towards no


def detection_indices(tp: float, fp: float, tn: float, fn: float) -> DetectionIndices | None:
    """Compute d' and the criterion with the log-linear correction.

    The correction adds half an answer to each cell, so that no rate is 0 or 1.

    Args:
        tp: True positives.
        fp: False positives.
        tn: True negatives.
        fn: False negatives.

    Returns:
        The indices, or None without positive or without negative questions.

    Source:
        Hautus 1995.
    """
    if not tp + fn or not fp + tn:
        return None
    hits = float(norm.ppf((tp + 0.5) / (tp + fn + 1)))
    false_alarms = float(norm.ppf((fp + 0.5) / (fp + tn + 1)))
    return DetectionIndices(hits - false_alarms, -(hits + false_alarms) / 2)
