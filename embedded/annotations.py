"""Writes held-out scenes the way MSCOCO and POPE do, so that their official metrics can be used as they are."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedded.album import Album
from embedded.categories import BY_NAME, CATEGORIES, NAMES
from embedded.language import caption
from embedded.picture import Thing

REFERENCE_CAPTIONS = 5
POPE_OBJECTS = 3
POPE_KINDS = ("random", "popular", "adversarial")


def file_name(number: int) -> str:
    return f"{number:012d}.png"


def write_scenes(folder: Path, album: Album) -> None:
    """images/*.png, instances.json, captions.json and pope/*.jsonl."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "pope").mkdir(exist_ok=True)
    for index in range(len(album)):
        Image.fromarray(np.array(album.pixels[index])).save(folder / "images" / file_name(index + 1), optimize=True)
    images = [
        {"id": index + 1, "file_name": file_name(index + 1), "height": side, "width": side}
        for index in range(len(album))
        for side in [album.pixels.shape[1]]
    ]
    categories = [{"id": category.coco_id, "name": category.name} for category in CATEGORIES]
    about = {"description": "Held-out scenes of OnlySeen, made of Noto emoji pictograms", "version": "1"}
    instances = {"info": about, "images": images, "annotations": _instances(album), "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "captions.json").write_text(
        json.dumps({"info": about, "images": images, "annotations": _captions(album)})
    )
    for kind, questions in pope_questions(album).items():
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        (folder / "pope" / f"{kind}.jsonl").write_text(lines)


def annotated(album: Album, index: int) -> list[Thing]:
    """What a picture shows, in the order of its annotations: any order, as in MSCOCO, not the large ones first."""
    things = album.things[index]
    return [things[number] for number in np.random.default_rng([6, index]).permutation(len(things))]


def _instances(album: Album) -> list[dict[str, Any]]:
    identifiers = {category.name: category.coco_id for category in CATEGORIES}
    found: list[dict[str, Any]] = []
    for index in range(len(album)):
        owners = np.array(album.owners[index])
        for thing in annotated(album, index):
            left, top, right, bottom = thing.box
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": index + 1,
                    "category_id": identifiers[thing.name],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": thing.area,
                    "iscrowd": 0,
                    "segmentation": run_lengths(owners == thing.index),
                }
            )
    return found


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed run-length encoding: column by column, beginning with the number of zeros."""
    flat = mask.flatten(order="F").astype(np.int8)
    changes = np.nonzero(np.diff(flat))[0] + 1
    runs = np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()
    return {"counts": [0, *runs] if flat[0] else runs, "size": list(mask.shape)}


def _captions(album: Album) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = []
    for index in range(len(album)):
        random = np.random.default_rng([4, index])
        for _ in range(REFERENCE_CAPTIONS):
            text = caption(random, album.picture(index))
            written.append({"id": len(written) + 1, "image_id": index + 1, "caption": text})
    return written


def pope_questions(album: Album, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """POPE by its official rules.

    The first three objects of every picture that has as many are asked for, each followed by one that is not there:
    any, the most frequent, or the one that most often occurs together with the object just asked for.
    """
    random = np.random.default_rng(seed)
    objects = [list(dict.fromkeys(thing.name for thing in annotated(album, index))) for index in range(len(album))]
    pictures = [(index, names) for index, names in enumerate(objects) if len(names) >= POPE_OBJECTS]
    frequency = Counter(name for _, names in pictures for name in names)
    together: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for _, names in pictures:
        for name in names:
            together[name].update(other for other in names if other != name)
    by_frequency = [name for name, _ in frequency.most_common()]
    questions: dict[str, list[dict[str, Any]]] = {kind: [] for kind in POPE_KINDS}
    for index, names in pictures:
        for kind in POPE_KINDS:
            unused = [name for name in NAMES if name not in names]
            for positive in names[:POPE_OBJECTS]:
                if kind == "random":
                    order = list(random.permutation(unused))
                elif kind == "popular":
                    order = by_frequency
                else:
                    order = [name for name, _ in together[positive].most_common()]
                negative = next((str(name) for name in order if name in unused), None) or str(random.choice(unused))
                unused.remove(negative)
                for asked, label in ((positive, "yes"), (negative, "no")):
                    questions[kind].append(
                        {
                            "question_id": len(questions[kind]) + 1,
                            "image": file_name(index + 1),
                            "text": pope_question(asked),
                            "label": label,
                        }
                    )
    return questions


def pope_question(name: str) -> str:
    return f"Is there {BY_NAME[name].with_article} in the image?"
