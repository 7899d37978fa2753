"""Captions and annotations that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.chair.score import score_captions
from eval.errors import InputError
from tests.eval.cli_driver import write_jsonl
from tests.eval.coco_data import CATEGORIES, INSTANCES

INVALID_CAPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "a string for a number": (
        {"image_id": "1", "caption": "a"},
        """:2: field "image_id": '1' is not an image of the annotations in """,
    ),
    "unknown": ({"image_id": 7, "caption": "a"}, ':2: field "image_id": 7 is not an image of the annotations in '),
    "no id": ({"image": 1, "caption": "a"}, ':2: field "image_id": is missing'),
    "a float": ({"image_id": 1.0, "caption": "a"}, ':2: field "image_id": must be an integer or a string'),
    "a boolean": ({"image_id": True, "caption": "a"}, ':2: field "image_id": must be an integer or a string'),
    "no caption": ({"image_id": 1}, ':2: field "caption": is missing'),
    "null": ({"image_id": 1, "caption": None}, ':2: field "caption": must be a string, not null'),
}


@pytest.mark.parametrize("case", INVALID_CAPTIONS)
def test_invalid_captions_are_refused(tmp_path: Path, annotations: Path, case: str) -> None:
    row, message = INVALID_CAPTIONS[case]
    captions = write_jsonl(tmp_path / "c.jsonl", [{"image_id": 1, "caption": "a dog"}, row])
    with pytest.raises(InputError) as refused:
        score_captions(captions, annotations, ["original"])["original"]
    assert f"{captions}{message}" in str(refused.value)
    if case == "a string for a number":
        assert str(refused.value).endswith("which has this id as a number")


def test_an_id_of_the_wrong_type_is_named(tmp_path: Path, annotations: Path) -> None:
    instances = {**INSTANCES, "images": [{"id": "1"}], "annotations": []}
    (annotations / "instances_val2014.json").write_text(json.dumps(instances))
    (annotations / "captions_val2014.json").write_text(json.dumps({"annotations": []}))
    captions = write_jsonl(tmp_path / "c.jsonl", [{"image_id": 1, "caption": "a dog"}])
    with pytest.raises(InputError, match="which has this id as a string"):
        score_captions(captions, annotations, ["original"])["original"]


INVALID_ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no annotations": ({"categories": CATEGORIES}, 'field "annotations": is missing'),
    "no list": ({**INSTANCES, "annotations": {}}, 'field "annotations": must be a list, not an object'),
    "no image": (
        {**INSTANCES, "annotations": [{"category_id": 1}]},
        'field "annotations[0].image_id": is missing',
    ),
    "unknown category": (
        {**INSTANCES, "annotations": [{"image_id": 1, "category_id": 99}]},
        'field "annotations[0].category_id": 99 is not one of the categories',
    ),
    "a list of categories": (
        {**INSTANCES, "annotations": [{"image_id": 1, "category_id": [18]}]},
        'field "annotations[0].category_id": must be an integer or a string, not a list',
    ),
    "unnamed category": (
        {**INSTANCES, "categories": [{"id": 1, "name": "unicorn"}]},
        """field "categories[0].name": 'unicorn' is not in the table of synonyms""",
    ),
}


@pytest.mark.parametrize("case", INVALID_ANNOTATIONS)
def test_invalid_annotations_are_refused(tmp_path: Path, annotations: Path, case: str) -> None:
    content, message = INVALID_ANNOTATIONS[case]
    file = annotations / "instances_val2014.json"
    file.write_text(json.dumps(content))
    captions = write_jsonl(tmp_path / "c.jsonl", [{"image_id": 1, "caption": "a dog"}])
    with pytest.raises(InputError) as refused:
        score_captions(captions, annotations, ["original"])["original"]
    assert str(refused.value) == f"{file}: {message}"
