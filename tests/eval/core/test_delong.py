"""DeLong's test against its definition by pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from eval.core.delong import delong_test
from eval.core.metrics import Floats


def wins(values: Floats, is_positive: np.ndarray) -> Floats:
    """Compare every positive with every negative, [positives, negatives]."""
    positive, negative = values[is_positive][:, None], values[~is_positive][None, :]
    result: Floats = (positive > negative) + 0.5 * (positive == negative)
    return result


@pytest.mark.parametrize("seed", range(3))
def test_result_equals_the_covariance_of_placements(seed: int) -> None:
    rng = np.random.default_rng(seed)
    is_positive = rng.random(60) < 0.4
    first, second = (np.round(is_positive * step + rng.normal(size=60), 1) for step in (1.5, 0.5))
    by_pair = [wins(each, is_positive) for each in (first, second)]
    above = np.cov([each.mean(1) for each in by_pair])
    below = np.cov([each.mean(0) for each in by_pair])
    contrast = np.array([1, -1])
    variance = contrast @ (above / is_positive.sum() + below / (~is_positive).sum()) @ contrast
    result = delong_test(first, second, is_positive)
    difference = by_pair[0].mean() - by_pair[1].mean()
    assert result.value == pytest.approx(difference)
    assert result.p == pytest.approx(2 * norm.sf(abs(difference) / np.sqrt(variance)))
    assert result.high - result.low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-5)
    exchanged = delong_test(second, first, is_positive)
    assert (exchanged.value, exchanged.p) == pytest.approx((-result.value, result.p))


def test_a_worked_example() -> None:
    """Positives above 3, 2 and 1 of three negatives under the first signal, and under the second 3, 3 and 0."""
    is_positive = np.array([True, True, True, False, False, False])
    first, second = np.array([6.0, 4, 2, 5, 3, 1]), np.array([6.0, 5, 1, 4, 3, 2])
    result = delong_test(first, second, is_positive)
    # Differences of placements: positives 0, -1/3, 1/3; negatives 1/3 - 2/3, 2/3 - 2/3, 1 - 2/3.
    assert result.value == pytest.approx(0)
    assert result.high == pytest.approx(1.959964 * np.sqrt(2 * (1 / 9) / 3), rel=1e-5)
    assert result.p == pytest.approx(1)


def test_equal_signals_do_not_differ() -> None:
    values, is_positive = np.array([1.0, 2, 3, 4]), np.array([False, True, False, True])
    assert delong_test(values, 2 * values, is_positive).p == 1


def test_one_positive_item_has_no_interval() -> None:
    result = delong_test(np.array([1.0, 2, 3]), np.array([1.0, 3, 2]), np.array([False, False, True]))
    assert result.value == 0.5
    assert np.isnan(result.p)
    assert np.isnan(result.low)
