"""Export of scenes in the formats of MSCOCO and POPE, so that the official metrics apply unchanged."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedded.data.categories import BY_NAME, CATEGORIES, NAMES
from embedded.data.renderer import SceneObject
from embedded.data.scene_dataset import SceneDataset
from embedded.data.text_templates import make_caption

REFERENCE_CAPTIONS = 5
POPE_OBJECTS = 3
POPE_KINDS = ("random", "popular", "adversarial")


def build_image_file_name(number: int) -> str:
    return f"{number:012d}.png"


def write_scenes(folder: Path, dataset: SceneDataset) -> None:
    """Write images/*.png, instances.json, captions.json and pope/*.jsonl."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "pope").mkdir(exist_ok=True)
    for index in range(len(dataset)):
        Image.fromarray(np.array(dataset.pixels[index])).save(
            folder / "images" / build_image_file_name(index + 1), optimize=True
        )
    images = [
        {"id": index + 1, "file_name": build_image_file_name(index + 1), "height": side, "width": side}
        for index in range(len(dataset))
        for side in [dataset.pixels.shape[1]]
    ]
    categories = [{"id": category.coco_id, "name": category.name} for category in CATEGORIES]
    info = {"description": "Held-out scenes of OnlySeen, made of Noto emoji pictograms", "version": "1"}
    instances = {"info": info, "images": images, "annotations": _build_instances(dataset), "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "captions.json").write_text(
        json.dumps({"info": info, "images": images, "annotations": _build_captions(dataset)})
    )
    for kind, questions in build_pope_questions(dataset).items():
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        (folder / "pope" / f"{kind}.jsonl").write_text(lines)


def shuffle_objects(dataset: SceneDataset, index: int) -> list[SceneObject]:
    """Return the objects of a scene in annotation order, which is random as in MSCOCO, not by size."""
    objects = dataset.objects[index]
    return [objects[number] for number in np.random.default_rng([6, index]).permutation(len(objects))]


def _build_instances(dataset: SceneDataset) -> list[dict[str, Any]]:
    identifiers = {category.name: category.coco_id for category in CATEGORIES}
    annotations: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        instance_map = np.array(dataset.instance_maps[index])
        for obj in shuffle_objects(dataset, index):
            left, top, right, bottom = obj.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": identifiers[obj.name],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": obj.area,
                    "iscrowd": 0,
                    "segmentation": encode_rle(instance_map == obj.index),
                }
            )
    return annotations


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Encode a mask [height, width] in COCO's uncompressed run-length encoding, column by column, zeros first."""
    flat_mask = mask.flatten(order="F").astype(np.int8)
    changes = np.nonzero(np.diff(flat_mask))[0] + 1
    runs = np.diff(np.concatenate([[0], changes, [len(flat_mask)]])).tolist()
    return {"counts": [0, *runs] if flat_mask[0] else runs, "size": list(mask.shape)}


def _build_captions(dataset: SceneDataset) -> list[dict[str, Any]]:
    captions: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        rng = np.random.default_rng([4, index])
        for _ in range(REFERENCE_CAPTIONS):
            text = make_caption(rng, dataset.get_scene(index))
            captions.append({"id": len(captions) + 1, "image_id": index + 1, "caption": text})
    return captions


def build_pope_questions(dataset: SceneDataset, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Build POPE questions by the official rules.

    Questions name the first three objects of every image with at least three. Each is followed by an absent object: a
    random one, the most frequent one, or the one that most often occurs together with the present object.

    Args:
        dataset: The scenes.
        seed: Seed of the random absent objects.

    Returns:
        Questions of each kind, in POPE's format.
    """
    rng = np.random.default_rng(seed)
    objects = [
        list(dict.fromkeys(obj.name for obj in shuffle_objects(dataset, index))) for index in range(len(dataset))
    ]
    scenes = [(index, names) for index, names in enumerate(objects) if len(names) >= POPE_OBJECTS]
    frequency = Counter(name for _, names in scenes for name in names)
    cooccurrences: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for _, names in scenes:
        for name in names:
            cooccurrences[name].update(other for other in names if other != name)
    by_frequency = [name for name, _ in frequency.most_common()]
    questions: dict[str, list[dict[str, Any]]] = {kind: [] for kind in POPE_KINDS}
    for index, names in scenes:
        for kind in POPE_KINDS:
            unused = [name for name in NAMES if name not in names]
            for positive in names[:POPE_OBJECTS]:
                if kind == "random":
                    order = list(rng.permutation(unused))
                elif kind == "popular":
                    order = by_frequency
                else:
                    order = [name for name, _ in cooccurrences[positive].most_common()]
                negative = next((str(name) for name in order if name in unused), None) or str(rng.choice(unused))
                unused.remove(negative)
                for name, label in ((positive, "yes"), (negative, "no")):
                    questions[kind].append(
                        {
                            "question_id": len(questions[kind]) + 1,
                            "image": build_image_file_name(index + 1),
                            "text": format_pope_question(name),
                            "label": label,
                        }
                    )
    return questions


def format_pope_question(name: str) -> str:
    return f"Is there {BY_NAME[name].with_article} in the image?"
