"""A few larger pictures for the README."""

from pathlib import Path

import numpy as np
from PIL import Image

from embedded.picture import NEAR, draw
from embedded.scene import Contents

SIDE = 336
SAMPLES = {
    "living-room": (Contents("living room", {"couch": 1, "tv": 1, "cat": 1, "potted plant": 1, "book": 2}), 5),
    "street": (Contents("city street", {"bus": 1, "car": 2, "traffic light": 1, "person": 1, "dog": 1}), 8),
    "savanna": (Contents("savanna", {"elephant": 1, "zebra": 1, "giraffe": 1, "bird": 1}), 3),
    "kitchen": (Contents("kitchen", {"bowl": 1, "cup": 1, "knife": 1, "banana": 1, "apple": 1, "bottle": 1}), 6),
}


def write_samples(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (contents, seed) in SAMPLES.items():
        picture = draw(np.random.default_rng(seed), contents, NEAR, SIDE)
        Image.fromarray(picture.pixels).save(folder / f"{name}.png", optimize=True)
