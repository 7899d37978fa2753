"""A small folder of scenes: ten pictures, six questions a split on each, one object of two annotated kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

OBJECTS = ("dog", "chair", "cup", "boat", "kite", "car")
CATEGORIES = [{"id": at, "name": name} for at, name in enumerate(OBJECTS, 1)]


def present(image: int) -> tuple[str, ...]:
    return tuple(OBJECTS[(image + step) % len(OBJECTS)] for step in range(3))


def lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(folder: Path, images: int = 10) -> Path:
    names = [f"{at:012d}.png" for at in range(1, images + 1)]
    (folder / "images").mkdir(parents=True)
    for at, name in enumerate(names):
        Image.new("RGB", (24, 24), (at * 20 % 256, 90, 200 - at)).save(folder / "images" / name)
    for split, turn in (("random", 0), ("popular", 1), ("adversarial", 2)):
        lines(folder / "pope" / f"{split}.jsonl", questions(names, turn))
    listed = [{"id": at, "file_name": name, "width": 24, "height": 24} for at, name in enumerate(names, 1)]
    annotations = [
        {"id": 10 * at + place, "image_id": at, "category_id": OBJECTS.index(name) + 1, "bbox": [0, 0, 5, 5]}
        for at in range(1, images + 1)
        for place, name in enumerate(present(at))
    ]
    instances = {"images": listed, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(instances))
    captions = [
        {"id": at, "image_id": at, "caption": f"A {present(at)[0]} and a {present(at)[1]}."}
        for at in range(1, images + 1)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": captions}))
    return folder


def questions(names: list[str], turn: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for at, name in enumerate(names, 1):
        there = present(at)
        absent = [each for each in OBJECTS if each not in there]
        absent = absent[turn:] + absent[:turn]
        for yes, no in zip(there, absent, strict=True):
            for label, thing in (("yes", yes), ("no", no)):
                text = f"Is there a {thing} in the image?"
                rows.append({"question_id": len(rows) + 1, "image": name, "text": text, "label": label})
    return rows
