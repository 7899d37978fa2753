"""Metrics as ratios of sums of counts, so that one bootstrap over images serves all metrics of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """A ratio of two weighted sums of counts.

    Attributes:
        name: Key in results.json.
        title: Name in reports.
        numerator: Weight of each count in the numerator.
        denominator: Weight of each count in the denominator.
        better: The direction of an improvement, if there is one.
        percent: Whether reports show the value in percent.
        per_question: Whether the value of one question is 0 or 1, so that McNemar's test applies.
        primary: Whether the metric decides if a strategy beats its control.
        max_relative_change: Reports warn of a larger change, relative to plain decoding.
        second: Weights of numerator and denominator of a second ratio. The metric is then the harmonic mean of both.
        meaning: The value in words, for readers who do not know the benchmark.
    """

    name: str
    title: str
    numerator: Mapping[str, float]
    denominator: Mapping[str, float]
    better: Literal["higher", "lower", "neither"] = "higher"
    percent: bool = True
    per_question: bool = False
    primary: bool = False
    max_relative_change: float | None = None
    second: tuple[Mapping[str, float], Mapping[str, float]] | None = None
    meaning: str = ""

    def is_positive(self, counts: Mapping[str, float]) -> bool:
        """Return the outcome of one question, for a metric that is per question."""
        return sum(weight * counts.get(name, 0) for name, weight in self.numerator.items()) > 0


@dataclass(frozen=True, slots=True)
class RatioMetrics:
    """Several metrics over a matrix of counts.

    Attributes:
        metrics: The metrics.
        count_names: Names of the columns of the count matrix.
        numerators: Weights, shape [counts, metrics].
        denominators: Weights, shape [counts, metrics].
        second_numerators: Weights of the second ratio, 0 for a metric without one, shape [counts, metrics].
        second_denominators: Likewise.
    """

    metrics: tuple[Metric, ...]
    count_names: tuple[str, ...]
    numerators: Floats
    denominators: Floats
    second_numerators: Floats
    second_denominators: Floats

    @classmethod
    def from_metrics(cls, metrics: Sequence[Metric]) -> RatioMetrics:
        """Collect the counts that the metrics need and build the weight matrices."""
        second = [metric.second or ({}, {}) for metric in metrics]
        parts = [
            [metric.numerator for metric in metrics],
            [metric.denominator for metric in metrics],
            [numerator for numerator, _ in second],
            [denominator for _, denominator in second],
        ]
        used = [name for metric in metrics for name in (*metric.denominator, *metric.numerator)]
        used += [name for numerator, denominator in second for name in (*denominator, *numerator)]
        names = tuple(dict.fromkeys(used))
        weights = [np.array([[part.get(name, 0.0) for part in each] for name in names]) for each in parts]
        return cls(tuple(metrics), names, *weights)

    def select(self, columns: Sequence[int]) -> RatioMetrics:
        """Keep some of the metrics, and all counts."""
        return RatioMetrics(
            tuple(self.metrics[column] for column in columns),
            self.count_names,
            self.numerators[:, columns],
            self.denominators[:, columns],
            self.second_numerators[:, columns],
            self.second_denominators[:, columns],
        )

    def compute(self, sums: Floats) -> Floats:
        """Compute the metrics from sums of counts.

        Args:
            sums: Shape [..., counts].

        Returns:
            Shape [..., metrics], nan where the denominator is 0.
        """
        first = divide_or_nan(sums @ self.numerators, sums @ self.denominators)
        is_mean = np.array([metric.second is not None for metric in self.metrics])
        if not is_mean.any():
            return first
        second = divide_or_nan(sums @ self.second_numerators, sums @ self.second_denominators)
        return np.where(is_mean, compute_harmonic_mean(first, second), first)


def divide_or_nan(numerator: Floats, denominator: Floats) -> Floats:
    """Divide elementwise; the result is nan where the denominator is not positive."""
    numerator, denominator = np.asarray(numerator), np.asarray(denominator)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def compute_harmonic_mean(first: Floats, second: Floats) -> Floats:
    """Compute the harmonic mean elementwise; nan where both are 0 or one has no value."""
    return divide_or_nan(2 * first * second, first + second)
