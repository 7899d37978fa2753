"""Annotations of three images in COCO's format, and captions of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.eval.cli_driver import ROOT

OFFICIAL_SYNONYMS = Path(os.environ.get("CHAIR_SYNONYMS", ROOT.parent / "shared/data/chair/synonyms.txt"))

CATEGORIES = [
    {"id": 1, "name": "person"},
    {"id": 6, "name": "bus"},
    {"id": 18, "name": "dog"},
    {"id": 47, "name": "cup"},
]
INSTANCES: dict[str, Any] = {
    "images": [{"id": number} for number in (1, 2, 3)],
    "categories": CATEGORIES,
    "annotations": [
        {"image_id": 1, "category_id": 18},
        {"image_id": 1, "category_id": 18},
        {"image_id": 2, "category_id": 6},
    ],
}
REFERENCES: dict[str, Any] = {
    "images": [{"id": number} for number in (1, 2, 3)],
    "annotations": [
        {"image_id": 1, "caption": "A man walks two dogs."},
        {"image_id": 1, "caption": "Somebody with a puppy next to a bus"},
        {"image_id": 2, "caption": "A bus at a stop sign."},
    ],
}
CAPTIONS = [
    {"image_id": 1, "caption": "A woman and a dog beside a bus, a bus and a cat."},
    {"image_id": 2, "caption": "Two buses and a bus."},
    {"image_id": 3, "caption": "Nothing at all"},
    {"image_id": 2, "caption": "A cup, a cup, a stop sign"},
]
SYNONYMS = "person, man, woman\nbus\ndog, puppy\ncat\ncup\nstop sign\n"


def write_annotations(folder: Path) -> Path:
    """Write both kinds of annotations and return the folder."""
    folder.mkdir()
    (folder / "instances_val2014.json").write_text(json.dumps(INSTANCES))
    (folder / "captions_val2014.json").write_text(json.dumps(REFERENCES))
    return folder
