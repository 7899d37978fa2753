"""DeLong's test: the difference between the areas under two ROC curves of the same items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from eval.core.metrics import Floats
from eval.core.statistics import CONFIDENCE


class DelongResult(NamedTuple):
    """The difference of two areas, its interval and its p-value. Without variance, bounds and p-value are nan."""

    value: float
    low: float
    high: float
    p: float


def delong_test(first: Floats, second: Floats, is_positive: NDArray[np.bool_]) -> DelongResult:
    """Test whether two signals of the same items have the same area under the ROC curve.

    The test takes the items as independent. Items of one image are not, so a bootstrap over images belongs beside it.

    Args:
        first: Value of each item under one signal, [items].
        second: Value under the other signal, [items].
        is_positive: Whether an item is positive, [items]. Both kinds must occur.

    Returns:
        The area of the first signal minus that of the second, with a normal interval.

    Source:
        DeLong, DeLong and Clarke-Pearson 1988, with the midranks of Sun and Xu 2014.
    """
    areas, positives, negatives = zip(
        *(_compute_placements(values, is_positive) for values in (first, second)), strict=True
    )
    difference = float(areas[0] - areas[1])
    variance = _variance_of_mean(positives[0] - positives[1]) + _variance_of_mean(negatives[0] - negatives[1])
    if not variance > 0:
        return DelongResult(difference, np.nan, np.nan, 1.0 if difference == 0 else np.nan)
    error = float(np.sqrt(variance))
    margin = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    p = 2 * float(norm.sf(abs(difference) / error))
    return DelongResult(difference, difference - margin, difference + margin, p)


def _compute_placements(values: Floats, is_positive: NDArray[np.bool_]) -> tuple[float, Floats, Floats]:
    """Compute the area, and its parts by item.

    Returns:
        The area, the share of negatives below each positive, [positives], and the share of positives above each
        negative, [negatives]. A tie is half an item.
    """
    positive, negative = values[is_positive], values[~is_positive]
    ranks = rankdata(values)
    above = (ranks[is_positive] - rankdata(positive)) / len(negative)
    below = 1 - (ranks[~is_positive] - rankdata(negative)) / len(positive)
    return float(above.mean()), above, below


def _variance_of_mean(parts: Floats) -> float:
    return float(parts.var(ddof=1) / len(parts)) if len(parts) > 1 else float("nan")
