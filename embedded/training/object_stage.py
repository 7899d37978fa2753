"""Objects stage: the tower, which so far marks the categories of each patch, learns to separate objects."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from embedded.data.attributes import ATTRIBUTE_SIZES, MAX_COUNT, compute_category_attributes, compute_object_attributes
from embedded.data.categories import INDEX, NAMES
from embedded.data.renderer import RenderedScene
from embedded.data.scene_dataset import SceneDataset
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.batch import SceneBatch, center_targets, normalize_pixels, sample_batch
from embedded.training.model_config import GRID, IMAGE_TOKENS, PATCH, WIDTH
from embedded.training.position_init import write_positions
from embedded.training.trainer import SHARDS, Trainer, autocast, select_device
from embedded.training.vision_stage import VisionModel, measure_recognition

ATTRIBUTE_WEIGHT, CENTER_WEIGHT, SUM_WEIGHT, OFF_SUBSPACE_WEIGHT = 3.0, 3.0, 0.5, 0.04
MIN_COVERAGE = 0.1
"""A patch predicts the attributes of the object that fills most of it, if that is at least this fraction."""


class ObjectHeads(nn.Module):
    """Training-only heads that read the attributes and centers of objects from image tokens."""

    def __init__(self, vision: VisionModel) -> None:
        super().__init__()
        self.vision = vision
        self.attributes = nn.Linear(WIDTH, sum(ATTRIBUTE_SIZES))
        self.centers = nn.Linear(WIDTH, len(NAMES))
        nn.init.zeros_(self.centers.weight)  # a sum of 64 random numbers would disturb the tower
        nn.init.zeros_(self.centers.bias)

    def measure_off_subspace_energy(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean squared length of the part of image tokens outside the class vectors.

        The language model normalizes its input. If that part grows, it no longer sees which categories are present.

        Args:
            tokens: [batch, 64, 256].

        Returns:
            Scalar.
        """
        directions, _ = torch.linalg.qr(self.vision.class_directions.T)
        held = tokens.float() - self.vision.empty
        run_parallel: torch.Tensor = held - held @ directions @ directions.T
        return run_parallel.square().sum(-1).mean()

    def loss(self, tokens: torch.Tensor, batch: SceneBatch) -> torch.Tensor:
        """Return the loss of the centers, and of the number, grid cell and colour of the object that a patch shows.

        Centers are learned by squared errors, not as logits, so that their sum over the image is a number of objects.

        Args:
            tokens: [batch, 64, 256].
            batch: The scenes.

        Returns:
            Scalar.
        """
        targets = torch.from_numpy(patch_attributes(batch.scenes)).to(tokens.device)
        centers = torch.from_numpy(center_targets(batch.scenes)).to(tokens.device)
        missed: torch.Tensor = self.centers(tokens.float()) - centers
        return (
            ATTRIBUTE_WEIGHT * attribute_loss(self.attributes(tokens.float()), targets)
            + CENTER_WEIGHT * missed.square().sum((1, 2)).mean()
            + SUM_WEIGHT * missed.sum(1).square().sum(1).mean()
        )


def attribute_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum, over the attributes, the mean cross-entropy where each is known.

    Args:
        logits: [..., sum(ATTRIBUTE_SIZES)].
        targets: [..., 3], -1 where unknown.

    Returns:
        Scalar.
    """
    parts = torch.split(logits.flatten(0, -2), list(ATTRIBUTE_SIZES), -1)
    columns = targets.flatten(0, -2).unbind(-1)
    sums = [
        nn.functional.cross_entropy(part, column, ignore_index=-1, reduction="sum") / (column >= 0).sum().clamp_min(1)
        for part, column in zip(parts, columns, strict=True)
    ]
    return torch.stack(sums).sum()


def patch_attributes(scenes: list[RenderedScene]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the attributes of the object that each patch shows, [scenes, 64, 3]; -1 where it shows none."""
    targets = np.full((len(scenes), IMAGE_TOKENS, len(ATTRIBUTE_SIZES)), -1, np.int64)
    for row, scene in enumerate(scenes):
        blocks = scene.instance_map.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(IMAGE_TOKENS, -1)
        coverage = np.stack([(blocks == obj.index).mean(1) for obj in scene.objects])
        largest = coverage.argmax(0)
        object_attributes = np.array(
            [(known.count, known.cell, known.colour) for known in compute_object_attributes(scene)]
        )
        is_shown = coverage.max(0) >= MIN_COVERAGE
        targets[row, is_shown] = object_attributes[largest[is_shown]]
    return targets


@torch.no_grad()
def measure_counting(object_heads: ObjectHeads, dataset: SceneDataset, count: int = 300) -> dict[str, float]:
    """Measure the fraction of correct counts, by sums of centers, for categories with one and with more objects."""
    count = min(count, len(dataset))
    tokens = object_heads.vision.compute_image_tokens(
        normalize_pixels(np.array(dataset.pixels[:count])).to(object_heads.vision.empty.device)
    )
    predicted = object_heads.centers(tokens).sum(1).round().clamp(1, MAX_COUNT)
    is_correct: dict[bool, list[bool]] = {False: [], True: []}
    for row in range(count):
        for name, known in compute_category_attributes(dataset.get_scene(row)).items():
            is_correct[known.count > 1].append(int(predicted[row, INDEX[name]]) == known.count)
    return {"one": float(np.mean(is_correct[False])), "more": float(np.mean(is_correct[True]))}


def train_objects(
    work_dir: Path,
    vision: VisionModel,
    dataset: SceneDataset,
    tuning_dataset: SceneDataset,
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation = FULL_AUGMENTATION,
    seed: int = 37,
) -> ObjectHeads:
    """Train the tower on single objects, from its last checkpoint if there is one."""
    device = select_device()
    torch.manual_seed(seed)
    object_heads = ObjectHeads(vision).to(device)
    if not (work_dir / "objects.pt").exists():
        write_positions(vision.eval(), dataset)
    trainer = Trainer(
        "objects",
        work_dir,
        object_heads,
        steps,
        seed=seed,
        muon_rate=1e-3,
        adam_rate=1e-3,
        warmup=50,
        shards=SHARDS,
    )

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = sample_batch(rng, dataset, batch_size // SHARDS, masked_fraction=augmentation.masked_fraction)
        with autocast(device):
            tokens = vision.compute_image_tokens(batch.pixels.to(device))
        dense = vision.loss(tokens, batch.present.to(device), stray_weight=0.0)
        object_loss, off_subspace_energy = (
            object_heads.loss(tokens, batch),
            object_heads.measure_off_subspace_energy(tokens),
        )
        figures = {"dense": dense.item(), "objects": object_loss.item(), "off_subspace": off_subspace_energy.item()}
        return dense + object_loss + OFF_SUBSPACE_WEIGHT * off_subspace_energy, figures

    for step in trainer:
        figures = {}
        if step % 250 == 249:
            object_heads.eval()
            figures = measure_recognition(vision, tuning_dataset) | measure_counting(object_heads, tuning_dataset)
            object_heads.train()
        trainer.update(compute_loss, figures)
    return object_heads
