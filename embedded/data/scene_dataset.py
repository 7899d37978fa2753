"""Datasets of rendered scenes on disk: memory-mapped arrays and the visible objects."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from embedded.data.renderer import SIZE, RenderedScene, SceneObject, View, sample_scene
from embedded.data.scene_sampler import ScenePrior

SHARD = 1000


@dataclass(frozen=True)
class SceneDataset:
    """Rendered scenes, by index.

    Every scene is drawn once: shard i of a dataset with seed s is sampled from the seed (s, i).

    Attributes:
        pixels: Images, [count, 112, 112, 3].
        instance_maps: Index of the object that each pixel shows or -1, [count, 112, 112].
        places: Kind of place of each scene.
        objects: Visible objects of each scene.
        hidden: Categories of each scene of which no object is visible.
    """

    pixels: NDArray[np.uint8]
    instance_maps: NDArray[np.int8]
    places: list[str]
    objects: list[tuple[SceneObject, ...]]
    hidden: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.places)

    def get_scene(self, index: int) -> RenderedScene:
        """Return one scene."""
        return RenderedScene(
            self.places[index], self.pixels[index], self.instance_maps[index], self.objects[index], self.hidden[index]
        )


def make_dataset(folder: Path, count: int, seed: int, prior: ScenePrior, view: View, processes: int) -> SceneDataset:
    """Draw a dataset, unless the folder holds one already, and open it.

    Args:
        folder: Where the arrays are stored.
        count: Number of scenes.
        seed: Seed of the scenes. The same seed draws the same scenes, to the bit.
        prior: Probabilities of the objects.
        view: Sizes and disturbances.
        processes: Number of worker processes. It has no effect on the scenes.

    Returns:
        The dataset.

    Raises:
        ValueError: The folder holds a dataset of another length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "objects.json").exists():
        sizes = [min(SHARD, count - start) for start in range(0, count, SHARD)]
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
        instance_maps = np.lib.format.open_memmap(folder / "instance_maps.npy", "w+", np.int8, (count, SIZE, SIZE))
        records: list[object] = []
        with ProcessPoolExecutor(processes) as pool:
            shards = pool.map(
                _render_shard,
                sizes,
                [(seed, number) for number in range(len(sizes))],
                [prior] * len(sizes),
                [view] * len(sizes),
            )
            for scenes in tqdm(shards, total=len(sizes), desc=f"drawing {folder.name}", unit="k"):
                for scene in scenes:
                    pixels[len(records)], instance_maps[len(records)] = scene.pixels, scene.instance_map
                    objects = [[obj.name, obj.index, obj.area, obj.box] for obj in scene.objects]
                    records.append([scene.place, objects, scene.hidden])
        pixels.flush()
        instance_maps.flush()
        (folder / "objects.json").write_text(json.dumps(records))
    dataset = open_dataset(folder)
    if len(dataset) != count:
        raise ValueError(f"{folder} holds {len(dataset)} scenes, not {count}. Remove the folder to draw them again.")
    return dataset


def open_dataset(folder: Path) -> SceneDataset:
    """Open a dataset that `make_dataset` has drawn."""
    records = json.loads((folder / "objects.json").read_text())
    objects = [
        tuple(SceneObject(name, index, area, tuple(box)) for name, index, area, box in entries)
        for _, entries, _ in records
    ]
    return SceneDataset(
        np.load(folder / "pixels.npy", mmap_mode="r"),
        np.load(folder / "instance_maps.npy", mmap_mode="r"),
        [place for place, *_ in records],
        objects,
        [tuple(hidden) for *_, hidden in records],
    )


def _render_shard(count: int, seed: tuple[int, int], prior: ScenePrior, view: View) -> list[RenderedScene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, prior, view) for _ in range(count)]
