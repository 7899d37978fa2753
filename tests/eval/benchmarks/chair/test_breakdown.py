"""CHAIR by object and by position."""

from __future__ import annotations

from collections.abc import Callable

from eval.benchmarks.chair.breakdown import count_by_category, count_by_position
from eval.benchmarks.chair.object_extraction import Variant
from eval.benchmarks.chair.score import CaptionScore


def test_count_by_category_counts_mentions_and_images(score_variant: Callable[[Variant], list[CaptionScore]]) -> None:
    rows = {row.node: row for row in count_by_category(score_variant("original"))}
    assert list(rows) == ["cup", "cat", "bus", "dog", "person", "stop sign"]
    assert (rows["cup"].mentions, rows["cup"].rate, rows["cup"].recall) == (2, 1, None)
    assert rows["cup"].co_occurring == (("bus", 1), ("stop sign", 1))
    assert (rows["bus"].images, rows["bus"].recalled, rows["bus"].recall) == (2, 1, 0.5)
    assert rows["cat"].co_occurring == (("dog", 1), ("person", 1))


def test_count_by_position_splits_captions(score_variant: Callable[[Variant], list[CaptionScore]]) -> None:
    halves = count_by_position(score_variant("original"), 2)
    assert [(half.start, half.end, half.mentions, half.hallucinated) for half in halves] == [
        (0, 0.5, 5, 2),
        (0.5, 1, 2, 1),
    ]
    assert sum(part.mentions for part in count_by_position(score_variant("original"), 7)) == 7
