"""Tango's interval on published and worked examples."""

from __future__ import annotations

import pytest

from eval.core.paired_intervals import tango_interval

# gained, lost, questions: the interval in percent
EXAMPLES = {
    (0, 0, 500): (-0.762, 0.762),
    (0, 0, 3000): (-0.128, 0.128),
    (0, 0, 9000): (-0.0427, 0.0427),
    (1, 0, 3000): (-0.095, 0.189),
    (6, 2, 3000): (-0.066, 0.377),
    (14, 0, 880): (0.95, 2.65),
    (58, 57, 500): (-4.04, 4.44),
    (122, 40, 500): (11.62, 21.21),
    (175, 74, 3000): (2.36, 4.42),
    (12, 2, 50): (6.1, 34.5),
}


@pytest.mark.parametrize("counts", EXAMPLES, ids=str)
def test_intervals_equal_worked_examples(counts: tuple[int, int, int]) -> None:
    low, high = EXAMPLES[counts]
    found = tango_interval(*counts)
    assert found == pytest.approx((low / 100, high / 100), abs=0.0005 if counts[2] == 50 else 0.00006)


@pytest.mark.parametrize("questions", [1, 10, 3000])
def test_equal_answers_have_a_closed_form(questions: int) -> None:
    z = 1.959963985
    bound = z * z / (questions + z * z)
    assert tango_interval(0, 0, questions) == pytest.approx((-bound, bound))


def test_exchanging_the_strategies_exchanges_the_bounds() -> None:
    low, high = tango_interval(9, 4, 60)
    assert tango_interval(4, 9, 60) == pytest.approx((-high, -low))


def test_bounds_end_where_every_question_differs() -> None:
    low, high = tango_interval(5, 0, 5)
    assert high == 1
    assert 0 < low < 1
    assert tango_interval(0, 5, 5) == pytest.approx((-1, -low))


def test_impossible_counts_are_refused() -> None:
    for counts in ((0, 0, 0), (3, 3, 5), (-1, 0, 5)):
        with pytest.raises(ValueError, match="are no counts"):
            tango_interval(*counts)
