"""A small data folder: ten images, six questions of each split on each image, two kinds of annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

OBJECTS = ("dog", "chair", "cup", "boat", "kite", "car")
CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(OBJECTS, 1)]


def write_scenes(folder: Path, images: int = 10) -> Path:
    """Write images, question files and annotations, and return the folder."""
    names = [f"{number:012d}.png" for number in range(1, images + 1)]
    (folder / "images").mkdir(parents=True)
    for index, name in enumerate(names):
        Image.new("RGB", (24, 24), (index * 20 % 256, 90, 200 - index)).save(folder / "images" / name)
    (folder / "pope").mkdir()
    for split, offset in (("random", 0), ("popular", 1), ("adversarial", 2)):
        lines = [json.dumps(row) + "\n" for row in _build_questions(names, offset)]
        (folder / "pope" / f"{split}.jsonl").write_text("".join(lines))
    listed = [{"id": number, "file_name": name, "width": 24, "height": 24} for number, name in enumerate(names, 1)]
    annotations = [
        {"id": 10 * number + index, "image_id": number, "category_id": OBJECTS.index(name) + 1, "bbox": [0, 0, 5, 5]}
        for number in range(1, images + 1)
        for index, name in enumerate(_objects_in(number))
    ]
    instances = {"images": listed, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(instances))
    captions = [
        {"id": number, "image_id": number, "caption": f"A {_objects_in(number)[0]} and a {_objects_in(number)[1]}."}
        for number in range(1, images + 1)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": captions}))
    return folder


def _objects_in(image: int) -> tuple[str, ...]:
    return tuple(OBJECTS[(image + step) % len(OBJECTS)] for step in range(3))


def _build_questions(names: list[str], offset: int) -> list[dict[str, Any]]:
    """Build a split; the offset rotates the absent objects."""
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names, 1):
        present = _objects_in(number)
        absent = [each for each in OBJECTS if each not in present]
        absent = absent[offset:] + absent[:offset]
        for yes, no in zip(present, absent, strict=True):
            for label, object_name in (("yes", yes), ("no", no)):
                text = f"Is there a {object_name} in the image?"
                rows.append({"question_id": len(rows) + 1, "image": name, "text": text, "label": label})
    return rows
