"""Batches of pictures for training: random pictures of an album, mirrored, shifted and tinted, with dense targets."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from embedded.album import Album
from embedded.categories import INDEX, NAMES
from embedded.model import GRID, IMAGE_TOKENS, PATCH, PIXEL_MEAN, PIXEL_STD
from embedded.picture import SIZE, Picture, Thing

NOISED_SHARE = 0.02
"""Rarely: pictures noised in the way of VCD must stay something that the model does not know well."""


@dataclass(frozen=True)
class Batch:
    pixels: torch.Tensor  # [batch, 3, 112, 112], normalised
    present: torch.Tensor  # [batch, 64, 48]: 1 where a patch shows a category
    pictures: list[Picture]


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """[batch, 112, 112, 3] bytes to [batch, 3, 112, 112], as the shipped processor does it."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (values - PIXEL_MEAN) / PIXEL_STD


def sample_batch(random: np.random.Generator, album: Album, count: int, shift: int = 0) -> Batch:
    """`shift`: largest displacement in pixels. Shifted pictures wrap around and their boxes stay: use 0 for text."""
    pixels, owners, pictures = [], [], []
    for index in random.integers(len(album), size=count):
        picture = album.picture(int(index))
        values, owned, things = picture.pixels, picture.owners, picture.things
        if random.random() < 0.5:
            values, owned = values[:, ::-1], owned[:, ::-1]
            things = tuple(_mirrored(thing) for thing in things)
        if shift:
            moved = tuple(random.integers(-shift, shift + 1, 2))
            values, owned = np.roll(values, moved, (0, 1)), np.roll(owned, moved, (0, 1))
        pixels.append(values)
        owners.append(owned)
        pictures.append(Picture(picture.place, values, owned, things))
    tensor = _tinted(random, normalised(np.stack(pixels)))
    return Batch(tensor, torch.from_numpy(dense_targets(np.stack(owners), [p.things for p in pictures])), pictures)


def dense_targets(owners: NDArray[np.int8], things: list[tuple[Thing, ...]]) -> NDArray[np.float32]:
    """[batch, 64, 48]: a patch shows a category if an object fills 18 % of it, or 30 % of the object lies in it."""
    count = len(owners)
    blocks = owners.reshape(count, GRID, PATCH, GRID, PATCH).transpose(0, 1, 3, 2, 4).reshape(count, IMAGE_TOKENS, -1)
    targets = np.zeros((count, IMAGE_TOKENS, len(NAMES)), np.float32)
    for row, listed in enumerate(things):
        for thing in listed:
            covered = (blocks[row] == thing.index).sum(-1)
            shown = (covered >= 0.18 * PATCH**2) | (covered >= 0.3 * covered.sum()) | (covered == covered.max())
            targets[row, shown, INDEX[thing.name]] = 1
    return targets


def middle_targets(pictures: list[Picture]) -> NDArray[np.float32]:
    """[pictures, 64, 48]: how many objects of a category have the middle of what can be seen of them in a patch."""
    middles = np.zeros((len(pictures), IMAGE_TOKENS, len(NAMES)), np.float32)
    for row, picture in enumerate(pictures):
        for thing in picture.things:
            down, right = (int(where.mean()) // PATCH for where in np.nonzero(picture.owners == thing.index))
            middles[row, down * GRID + right, INDEX[thing.name]] += 1
    return middles


def _mirrored(thing: Thing) -> Thing:
    left, top, right, bottom = thing.box
    return Thing(thing.name, thing.index, thing.area, (SIZE - right, top, SIZE - left, bottom))


def _tinted(random: np.random.Generator, pixels: torch.Tensor) -> torch.Tensor:
    count = len(pixels)
    gains = torch.from_numpy(np.exp(random.normal(0, 0.06, (count, 3, 1, 1)))).float()
    offsets = torch.from_numpy(random.normal(0, 0.12, (count, 1, 1, 1))).float()
    pixels = pixels * gains + offsets
    for row in np.nonzero(random.random(count) < NOISED_SHARE)[0]:
        signal = random.uniform(0.3, 1.0)
        noise = torch.from_numpy(random.normal(0, 1, tuple(pixels[row].shape))).float()
        pixels[row] = pixels[row] * signal**0.5 + noise * (1 - signal) ** 0.5
    return pixels
