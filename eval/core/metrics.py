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
    """

    metrics: tuple[Metric, ...]
    count_names: tuple[str, ...]
    numerators: Floats
    denominators: Floats

    @classmethod
    def from_metrics(cls, metrics: Sequence[Metric]) -> RatioMetrics:
        """Collect the counts that the metrics need and build the weight matrices."""
        names = tuple(dict.fromkeys(name for metric in metrics for name in (*metric.denominator, *metric.numerator)))
        return cls(
            tuple(metrics),
            names,
            np.array([[metric.numerator.get(name, 0.0) for metric in metrics] for name in names]),
            np.array([[metric.denominator.get(name, 0.0) for metric in metrics] for name in names]),
        )

    def compute(self, sums: Floats) -> Floats:
        """Compute the metrics from sums of counts.

        Args:
            sums: Shape [..., counts].

        Returns:
            Shape [..., metrics], nan where the denominator is 0.
        """
        return divide_or_nan(sums @ self.numerators, sums @ self.denominators)


def divide_or_nan(numerator: Floats, denominator: Floats) -> Floats:
    """Divide elementwise; the result is nan where the denominator is not positive."""
    numerator, denominator = np.asarray(numerator), np.asarray(denominator)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
