"""Metrics as ratios of sums of counts. So one resampling of pictures serves them all, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """sum(over) / sum(under), each a weighted sum of counts. `better` says which way is up, if any."""

    name: str
    title: str
    over: Mapping[str, float]
    under: Mapping[str, float]
    better: Literal["higher", "lower", "neither"] = "higher"
    percent: bool = True
    per_question: bool = False  # 0 or 1 for every question, so that McNemar's test applies
    primary: bool = False  # decides whether a strategy beats its control
    watch: float | None = None  # a move by more than this share of plain's value is warned of

    def outcome(self, counts: Mapping[str, float]) -> bool:
        """Of one question, for a metric that is per question."""
        return sum(weight * counts.get(name, 0) for name, weight in self.over.items()) > 0


@dataclass(frozen=True, slots=True)
class Ratios:
    """Several metrics over a matrix of counts whose columns are `names`."""

    metrics: tuple[Metric, ...]
    names: tuple[str, ...]
    over: Floats  # [counts, metrics]
    under: Floats  # [counts, metrics]

    def __call__(self, sums: Floats) -> Floats:
        """[..., counts] -> [..., metrics]; nan where a ratio has no value."""
        return quotient(sums @ self.over, sums @ self.under)


def quotient(over: Floats, under: Floats) -> Floats:
    over, under = np.asarray(over), np.asarray(under)
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)


def ratios(metrics: Sequence[Metric]) -> Ratios:
    names = tuple(dict.fromkeys(name for metric in metrics for name in (*metric.under, *metric.over)))
    return Ratios(
        tuple(metrics),
        names,
        np.array([[metric.over.get(name, 0.0) for metric in metrics] for name in names]),
        np.array([[metric.under.get(name, 0.0) for metric in metrics] for name in names]),
    )
