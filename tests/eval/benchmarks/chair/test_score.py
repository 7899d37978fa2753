"""CHAIR's metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from eval.benchmarks.chair.object_extraction import Variant
from eval.benchmarks.chair.score import CaptionScore, compute_score, score_captions
from tests.eval.cli_driver import write_jsonl
from tests.eval.coco_data import INSTANCES


def test_metrics_equal_their_definitions(score_variant: Callable[[Variant], list[CaptionScore]]) -> None:
    """With the variant original, buses count in captions and references, but a bus does not."""
    found = compute_score(score_variant("original"))
    # 1: woman, dog, cat of {dog, person}; 2: bus of {bus, stop sign}; 3: nothing of {}; 2: cup, cup, stop sign.
    assert (found.mentions, found.hallucinated_mentions, found.hallucinated_captions, found.n) == (7, 3, 2, 4)
    assert found.chair_s == 2 / 4
    assert found.chair_i == 3 / 7
    assert found.recall == (2 + 1 + 0 + 1) / (2 + 2 + 0 + 2)
    assert found.length == (15 + 6 + 3 + 8) / 4


def test_the_fixed_variant_finds_the_bus_in_captions_and_references(
    score_variant: Callable[[Variant], list[CaptionScore]],
) -> None:
    found = score_variant("fixed")
    assert [mention.node for mention in found[0].hallucinated] == ["cat"]
    assert found[0].ground_truth == {"person", "dog", "bus"}
    assert len(found[1].objects.mentions) == 2


def test_a_division_without_a_value_is_none_with_a_note(tmp_path: Path, annotations: Path) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", [{"image_id": 3, "caption": "nothing"}])
    found = compute_score(score_captions(captions, annotations, ["original"])["original"]).as_json()
    assert (found["chair_s"], found["chair_i"], found["recall"]) == (0, None, None)
    assert found["notes"] == {"chair_i": "no caption mentions an object", "recall": "no image has an object"}


def test_several_annotation_files_are_merged(tmp_path: Path, annotations: Path) -> None:
    train = {**INSTANCES, "images": [{"id": 9}], "annotations": [{"image_id": 9, "category_id": 47}]}
    (annotations / "instances_train2014.json").write_text(json.dumps(train))
    captions = write_jsonl(
        tmp_path / "c.jsonl", [{"image_id": 9, "caption": "a cup"}, {"image_id": 1, "caption": "a dog"}]
    )
    assert compute_score(score_captions(captions, annotations, ["original"])["original"]).chair_s == 0
