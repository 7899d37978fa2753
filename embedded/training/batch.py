"""Training batches: random scenes of a dataset, mirrored, shifted and tinted, with targets for each patch."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from embedded.data.categories import INDEX, NAMES
from embedded.data.renderer import NEAR_VIEW, SIZE, InstanceMap, RenderedScene, SceneObject
from embedded.data.scene_dataset import SceneDataset
from embedded.training.model_config import GRID, IMAGE_TOKENS, PATCH, PIXEL_MEAN, PIXEL_STD

NOISED_FRACTION = 0.08
"""Fraction of images with strong noise. It is small: the model must not learn to recognise objects in noised images."""
MIN_MASK, MAX_MASK = 0.25, 0.7
"""Black part of a masked image, objects that are kept included."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one training step, with their images and targets."""

    pixels: torch.Tensor  # [batch, 3, 112, 112], normalized
    present: torch.Tensor  # [batch, 64, 48]: 1 where a patch shows a category
    scenes: list[RenderedScene]


def normalize_pixels(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Normalize images [batch, 112, 112, 3] to [batch, 3, 112, 112], as the exported processor does."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (image - PIXEL_MEAN) / PIXEL_STD


def sample_batch(
    rng: np.random.Generator, dataset: SceneDataset, size: int, *, masked_fraction: float, shift: int = 0
) -> SceneBatch:
    """Sample scenes and augment them.

    Args:
        rng: Source of all random choices.
        dataset: The scenes.
        size: Number of scenes.
        masked_fraction: Fraction of images of which a part is black.
        shift: Maximum displacement in pixels. Shifted images wrap around and their boxes stay: use 0 for texts.

    Returns:
        The batch.
    """
    pixels, instance_maps, masks, scenes = [], [], [], []
    for index in rng.integers(len(dataset), size=size):
        scene = dataset.get_scene(int(index))
        image, instances, objects = scene.pixels, scene.instance_map, scene.objects
        if rng.random() < 0.5:
            image, instances = image[:, ::-1], instances[:, ::-1]
            objects = tuple(_mirror_object(obj) for obj in objects)
        if shift:
            offset = tuple(rng.integers(-shift, shift + 1, 2))
            image, instances = np.roll(image, offset, (0, 1)), np.roll(instances, offset, (0, 1))
        mask = None
        if rng.random() < masked_fraction:
            mask, instances, objects = mask_objects(rng, instances, objects)
        masks.append(mask)
        pixels.append(image)
        instance_maps.append(instances)
        scenes.append(RenderedScene(scene.place, image, instances, objects, scene.hidden))
    tensor = _tint(rng, normalize_pixels(np.stack(pixels)))
    for row, mask in enumerate(masks):
        if mask is not None:
            tensor[row, :, torch.from_numpy(mask)] = -PIXEL_MEAN / PIXEL_STD
    return SceneBatch(
        tensor, torch.from_numpy(patch_targets(np.stack(instance_maps), [scene.objects for scene in scenes])), scenes
    )


def patch_targets(instance_maps: NDArray[np.int8], objects: list[tuple[SceneObject, ...]]) -> NDArray[np.float32]:
    """Mark the categories that each patch shows, [batch, 64, 48].

    A patch shows a category if an object fills 18 % of it, if 30 % of the object lie in it, or if no other patch holds
    more of the object.

    Args:
        instance_maps: Object of each pixel, [batch, 112, 112].
        objects: Visible objects of each scene.

    Returns:
        1 where a patch shows a category, else 0.
    """
    size = len(instance_maps)
    blocks = (
        instance_maps.reshape(size, GRID, PATCH, GRID, PATCH).transpose(0, 1, 3, 2, 4).reshape(size, IMAGE_TOKENS, -1)
    )
    targets = np.zeros((size, IMAGE_TOKENS, len(NAMES)), np.float32)
    for row, scene_objects in enumerate(objects):
        for obj in scene_objects:
            coverage = (blocks[row] == obj.index).sum(-1)
            is_shown = (coverage >= 0.18 * PATCH**2) | (coverage >= 0.3 * coverage.sum()) | (coverage == coverage.max())
            targets[row, is_shown, INDEX[obj.name]] = 1
    return targets


def center_targets(scenes: list[RenderedScene]) -> NDArray[np.float32]:
    """Count the objects of each category whose visible part has its center in a patch, [scenes, 64, 48]."""
    centers = np.zeros((len(scenes), IMAGE_TOKENS, len(NAMES)), np.float32)
    for row, scene in enumerate(scenes):
        for obj in scene.objects:
            row_of_patch, column_of_patch = (
                int(where.mean()) // PATCH for where in np.nonzero(scene.instance_map == obj.index)
            )
            centers[row, row_of_patch * GRID + column_of_patch, INDEX[obj.name]] += 1
    return centers


def _mirror_object(obj: SceneObject) -> SceneObject:
    left, top, right, bottom = obj.box
    return SceneObject(obj.name, obj.index, obj.area, (SIZE - right, top, SIZE - left, bottom))


def mask_objects(
    rng: np.random.Generator, instance_map: InstanceMap, objects: tuple[SceneObject, ...]
) -> tuple[NDArray[np.bool_], InstanceMap, tuple[SceneObject, ...]]:
    """Sample a black region that spares some objects.

    Args:
        rng: Source of all random choices.
        instance_map: Object of each pixel, [112, 112].
        objects: The visible objects.

    Returns:
        The region, [112, 112], the instance map without it, and the objects that are still visible. At least one is.
    """
    cells = int(rng.integers(4, 13))
    resample = Image.Resampling.BICUBIC if rng.random() < 0.7 else Image.Resampling.NEAREST
    field = np.asarray(Image.fromarray(rng.random((cells, cells)).astype(np.float32)).resize((SIZE, SIZE), resample))
    region = field < np.quantile(field, rng.uniform(MIN_MASK, MAX_MASK))
    kept = [obj for obj in objects if rng.random() < 0.6] or [objects[rng.integers(len(objects))]]
    margin = int(rng.integers(1, 6))
    for obj in kept:
        left, top, right, bottom = obj.box
        region[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
    masked = np.where(region, -1, instance_map).astype(np.int8)
    remaining = []
    for obj in objects:
        rows, columns = np.nonzero(masked == obj.index)
        if len(rows) < max(min(NEAR_VIEW.min_visible_pixels, obj.area), 0.5 * obj.area):
            masked[masked == obj.index] = -1
            continue
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        remaining.append(SceneObject(obj.name, obj.index, len(rows), box))
    return region, masked, tuple(remaining)


def _tint(rng: np.random.Generator, pixels: torch.Tensor) -> torch.Tensor:
    size = len(pixels)
    gains = torch.from_numpy(np.exp(rng.normal(0, 0.06, (size, 3, 1, 1)))).float()
    offsets = torch.from_numpy(rng.normal(0, 0.12, (size, 1, 1, 1))).float()
    pixels = pixels * gains + offsets
    for row in np.nonzero(rng.random(size) < NOISED_FRACTION)[0]:
        signal = rng.uniform(0.3, 1.0)
        noise = torch.from_numpy(rng.normal(0, 1, tuple(pixels[row].shape))).float()
        pixels[row] = pixels[row] * signal**0.5 + noise * (1 - signal) ** 0.5
    return pixels
