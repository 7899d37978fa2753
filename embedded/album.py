"""A set of drawn scenes on disk: arrays that can be mapped into memory, and what the pictures show."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from embedded.picture import SIZE, Picture, Thing, View, sample_picture
from embedded.scene import World

SHARD = 1000


@dataclass(frozen=True)
class Album:
    """`count` pictures. Nothing is drawn twice: shard i of an album with seed s is sampled from the pair (s, i)."""

    pixels: NDArray[np.uint8]  # [count, 112, 112, 3]
    owners: NDArray[np.int8]  # [count, 112, 112]
    places: list[str]
    things: list[tuple[Thing, ...]]

    def __len__(self) -> int:
        return len(self.places)

    def picture(self, index: int) -> Picture:
        return Picture(self.places[index], self.pixels[index], self.owners[index], self.things[index])


def make_album(folder: Path, count: int, seed: int, world: World, view: View, processes: int) -> Album:
    """Draws the album, unless it is there, and opens it.

    Raises:
        ValueError: the folder holds an album of another length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "things.json").exists():
        sizes = [min(SHARD, count - start) for start in range(0, count, SHARD)]
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
        owners = np.lib.format.open_memmap(folder / "owners.npy", "w+", np.int8, (count, SIZE, SIZE))
        seen: list[object] = []
        with ProcessPoolExecutor(processes) as pool:
            shards = pool.map(
                _draw_shard,
                sizes,
                [(seed, number) for number in range(len(sizes))],
                [world] * len(sizes),
                [view] * len(sizes),
            )
            for pictures in tqdm(shards, total=len(sizes), desc=f"drawing {folder.name}", unit="k"):
                for picture in pictures:
                    pixels[len(seen)], owners[len(seen)] = picture.pixels, picture.owners
                    seen.append([picture.place, [[t.name, t.index, t.area, t.box] for t in picture.things]])
        pixels.flush()
        owners.flush()
        (folder / "things.json").write_text(json.dumps(seen))
    album = open_album(folder)
    if len(album) != count:
        raise ValueError(f"{folder} holds {len(album)} pictures, not {count}: remove it to have them drawn anew.")
    return album


def open_album(folder: Path) -> Album:
    seen = json.loads((folder / "things.json").read_text())
    things = [tuple(Thing(name, index, area, tuple(box)) for name, index, area, box in listed) for _, listed in seen]
    return Album(
        np.load(folder / "pixels.npy", mmap_mode="r"),
        np.load(folder / "owners.npy", mmap_mode="r"),
        [place for place, _ in seen],
        things,
    )


def _draw_shard(count: int, seed: tuple[int, int], world: World, view: View) -> list[Picture]:
    random = np.random.default_rng(seed)
    return [sample_picture(random, world, view) for _ in range(count)]
