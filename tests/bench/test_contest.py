"""CHAIR_i at equal recall, on captions whose numbers can be told by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.contest import Said, gap
from eval.question import Mark


def said(*captions: str) -> Said:
    """Captions as names of objects, of which the capitals are in the picture; three objects are there."""
    marks = [
        Mark({"there": 3}, {"mentions": [[at, at, name, name.isupper()] for at, name in enumerate(caption)]})
        for caption in captions
    ]
    run: Any = SimpleNamespace(sheet=SimpleNamespace(marks={"": marks}))
    return Said.of(run, "")


def test_recall_counts_an_object_once_and_chair_every_mention() -> None:
    curve = said("AxA", "B").curve(np.ones(2))
    assert curve[0] == pytest.approx([100 * 2 / 6, 0])  # A, B
    assert curve[1] == pytest.approx([100 * 2 / 6, 100 * 1 / 3])  # A, x, B
    assert curve[-1] == pytest.approx([100 * 2 / 6, 100 * 1 / 4])


def test_pictures_count_by_their_weight() -> None:
    assert said("A", "x").curve(np.array([3.0, 1.0]))[0] == pytest.approx([100 * 3 / 12, 25])


def test_the_longer_captions_are_cut_to_the_recall_of_the_shorter() -> None:
    once = np.ones(1)
    short, long, worse = (said(caption).curve(once) for caption in ("A", "ABx", "xA"))
    assert gap(short, long) == pytest.approx(0)  # at one object of three nothing is invented yet
    assert gap(long, worse) == pytest.approx(-50)
    assert gap(worse, long) == pytest.approx(50)
