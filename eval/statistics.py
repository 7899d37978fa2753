"""Is it a difference? Pictures are the unit that was sampled: all that is said about one is resampled together.

The tests themselves are scipy's and statsmodels'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from eval.metrics import Floats, Ratios, quotient

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0

Indices = NDArray[np.int64]


class Interval(NamedTuple):
    value: float
    low: float
    high: float
    error: float  # standard error


@dataclass(frozen=True)
class Bootstrap:
    """Pictures drawn anew with replacement; the same draws for every strategy, so that differences are paired."""

    weights: Floats  # [resamples, pictures]: how often each was drawn

    @classmethod
    def of(cls, pictures: int) -> Bootstrap:
        rng = np.random.default_rng(SEED)
        return cls(rng.multinomial(pictures, np.full(pictures, 1 / pictures), RESAMPLES).astype(np.float64))

    def values(self, counts: Floats, ratios: Ratios) -> list[Interval]:
        """Of `counts` [pictures, counts], one interval a metric."""
        return intervals(ratios(counts.sum(0)), ratios(self.weights @ counts))

    def differences(self, counts: Floats, reference: Floats, ratios: Ratios) -> list[Interval]:
        observed = ratios(counts.sum(0)) - ratios(reference.sum(0))
        return intervals(observed, ratios(self.weights @ counts) - ratios(self.weights @ reference))


def intervals(observed: Floats, replicates: Floats) -> list[Interval]:
    """Percentile intervals. Replicates without a value are left out."""
    outside = (1 - CONFIDENCE) / 2
    found: list[Interval] = []
    for value, column in zip(observed, replicates.T, strict=True):
        valid = column[np.isfinite(column)]
        if np.isnan(value) or len(valid) < 2:
            found.append(Interval(float(value), np.nan, np.nan, np.nan))
            continue
        low, high = np.quantile(valid, [outside, 1 - outside])
        found.append(Interval(float(value), float(low), float(high), float(valid.std(ddof=1))))
    return found


def exchange(counts: Floats, reference: Floats, ratios: Ratios) -> list[float]:
    """P-values, one a metric: were it all the same, the two strategies could be exchanged within every picture."""
    both = np.concatenate([counts, reference])
    one, other = np.arange(len(counts)), np.arange(len(counts), len(both))
    return [
        exchanged(both @ ratios.over[:, column], both @ ratios.under[:, column], one, other)
        for column in range(len(ratios.metrics))
    ]


def exchanged(over: Floats, under: Floats, one: Indices, other: Indices) -> float:
    if np.array_equal(over[one], over[other]) and np.array_equal(under[one], under[other]):
        return 1.0
    if len(one) < 2:  # one picture: exchanged or not, the difference is as large
        return 1.0

    def difference(one: Indices, other: Indices, axis: int) -> Floats:
        return quotient(over[one].sum(axis), under[one].sum(axis)) - quotient(
            over[other].sum(axis), under[other].sum(axis)
        )

    if np.isnan(difference(one, other, 0)):
        return float("nan")
    test = permutation_test(
        (one, other),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES - 1,
        batch=200,
        rng=np.random.default_rng(SEED),
    )
    return float(test.pvalue)


class Discordance(NamedTuple):
    gained: int  # right only with the strategy
    lost: int  # right only with the reference
    p: float


def mcnemar(right: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Discordance:
    """Exact, on paired outcomes."""
    gained, lost = int((right & ~reference).sum()), int((~right & reference).sum())
    table = [[int((right & reference).sum()), gained], [lost, int((~right & ~reference).sum())]]
    return Discordance(gained, lost, float(statsmodels_mcnemar(table, exact=True).pvalue))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjusted for having tried them all; nan stays."""
    known = [index for index, p in enumerate(pvalues) if not np.isnan(p)]
    adjusted = [float("nan")] * len(pvalues)
    if known:
        for index, p in zip(known, multipletests([pvalues[i] for i in known], method="holm")[1], strict=True):
            adjusted[index] = float(p)
    return adjusted


def detectable(error: float, pictures: int, *, power: float = 0.8) -> float | None:
    """The least true difference that a run of this size would find with that power; None where nothing varied."""
    if not np.isfinite(error) or error == 0 or pictures < 3:
        return None
    effect = TTestPower().solve_power(nobs=pictures, alpha=1 - CONFIDENCE, power=power, alternative="two-sided")
    return float(effect) * error * float(np.sqrt(pictures))


class Signal(NamedTuple):
    sensitivity: float  # d': how well present and absent are told apart
    criterion: float  # above 0: leans to no


def signal(tp: float, fp: float, tn: float, fn: float) -> Signal | None:
    """Log-linear correction (Hautus 1995): half an answer is added to each cell, so that no rate is 0 or 1."""
    if not tp + fn or not fp + tn:
        return None
    hits = float(norm.ppf((tp + 0.5) / (tp + fn + 1)))
    alarms = float(norm.ppf((fp + 0.5) / (fp + tn + 1)))
    return Signal(hits - alarms, -(hits + alarms) / 2)
