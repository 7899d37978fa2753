"""Four larger scenes for the README and the playground, and the objects in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedded.data.categories import CATEGORIES
from embedded.data.renderer import NEAR_VIEW, render_scene
from embedded.data.scene_sampler import SceneContents

SIDE = 336
SAMPLES = {
    "living-room": (SceneContents("living room", {"couch": 1, "tv": 1, "cat": 1, "potted plant": 1, "book": 2}), 5),
    "street": (SceneContents("city street", {"bus": 1, "car": 2, "traffic light": 1, "person": 1, "dog": 1}), 8),
    "savanna": (SceneContents("savanna", {"elephant": 1, "zebra": 1, "giraffe": 1, "bird": 1}), 3),
    "kitchen": (SceneContents("kitchen", {"bowl": 1, "cup": 1, "knife": 1, "banana": 1, "apple": 1, "bottle": 1}), 6),
}


def write_samples(folder: Path) -> None:
    """Render the samples as PNG files, and write the objects in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (contents, seed) in SAMPLES.items():
        scene = render_scene(np.random.default_rng(seed), contents, NEAR_VIEW, SIDE)
        Image.fromarray(scene.pixels).save(folder / f"{name}.png", optimize=True)
    (folder / "objects.json").write_text(json.dumps(list_objects(), indent=1) + "\n")


def list_objects() -> dict[str, Any]:
    """List the words for each category, and the number of its objects in each sample."""
    return {
        "words": {category.name: [category.name, category.plural_name] for category in CATEGORIES},
        "images": {f"{name}.png": dict(contents.counts) for name, (contents, _) in SAMPLES.items()},
    }
