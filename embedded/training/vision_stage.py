"""Vision stage: the tower learns to write, for each patch, the vectors of the categories that it shows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionModel

from embedded.data.scene_dataset import SceneDataset
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.batch import normalize_pixels, patch_targets, sample_batch
from embedded.training.model_config import (
    GRID,
    PATCH,
    VISION_HEADS,
    VISION_WIDTH,
    Projector,
    build_class_vectors,
    build_tower,
    patch_features,
)
from embedded.training.trainer import Trainer, autocast, select_device


@dataclass(frozen=True)
class LogitScale:
    """Conversion of a coefficient along a class vector into a logit: sharpness * coefficient - bias."""

    sharpness: float
    bias: float


TOWER_SCALE = LogitScale(9.0, 4.5)
LANGUAGE_SCALE = LogitScale(14.0, 7.3)
"""The tower learns on a coarse scale, on which absent categories have coefficients of about -0.3. The language model
needs about 0 for absent and 0.8 for present ones. `rescale_tokens` converts between them without changing any logit.
"""
HORIZON = 2400
RESIDUAL_SCALE = 0.2
LOCALITY = 1.5
NEIGHBOURS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
)
"""Patch, as (rows, columns) away, to which the first four heads of the first three layers initially attend."""


class VisionModel(nn.Module):
    """Tower and projector with their objective for each patch."""

    class_directions: torch.Tensor
    empty: torch.Tensor

    def __init__(self, scale: LogitScale = TOWER_SCALE) -> None:
        super().__init__()
        self.scale = scale
        self.tower = build_tower()
        self.projector = Projector()
        vectors, empty = build_class_vectors()
        self.register_buffer("class_directions", vectors, persistent=False)
        self.register_buffer("empty", empty, persistent=False)

    def compute_image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return image tokens [batch, 64, 256] for images [batch, 3, 112, 112]."""
        tokens: torch.Tensor = self.projector(patch_features(self.tower, pixels))
        return tokens

    def compute_evidence(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, 64, 48] of each category in each patch: the projection onto its class vector."""
        directions = self.class_directions / self.class_directions.square().sum(1, keepdim=True)
        return ((tokens.float() - self.empty) @ directions.T) * self.scale.sharpness - self.scale.bias

    def loss(self, tokens: torch.Tensor, present: torch.Tensor, stray_weight: float = 2.0) -> torch.Tensor:
        """Return the cross-entropy per patch and per image, plus a penalty on the part outside the class vectors.

        Args:
            tokens: Image tokens, [batch, 64, 256].
            present: 1 where a patch shows a category, [batch, 64, 48].
            stray_weight: Weight of the penalty.

        Returns:
            Scalar.
        """
        logits = self.compute_evidence(tokens)
        per_patch = nn.functional.binary_cross_entropy_with_logits(
            logits, present, reduction="none", pos_weight=torch.tensor(1.5, device=logits.device)
        )
        picture_logits = torch.logsumexp(logits * 2, 1) / 2 - 0.7
        per_picture = nn.functional.binary_cross_entropy_with_logits(picture_logits, present.amax(1), reduction="none")
        stray = (tokens.float() - self.empty - present @ self.class_directions).square().mean()
        return per_patch.sum(-1).mean() + 0.3 * per_picture.sum(-1).mean() + stray_weight * stray


@torch.no_grad()
def init_vision(vision: VisionModel, dataset: SceneDataset) -> None:
    """Set start values from which a small transformer learns within minutes.

    The patch embedding holds whitened principal components of patches. Residual branches are scaled down; otherwise the
    model stays on the plateau of the base rates for hundreds of steps. Heads of the first layers attend to one
    neighbouring patch each, by sines and cosines of the position.

    Args:
        vision: The model, changed in place.
        dataset: Scenes that the patches are taken from.
    """
    embeddings = vision.tower.base_model.embeddings
    patches = normalize_pixels(np.array(dataset.pixels[:1000])).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH)
    patches = patches[torch.randperm(len(patches))[:30000]]
    _, singular, directions = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    variances = singular.square() / len(patches)
    whitening = directions[:VISION_WIDTH] / (variances[:VISION_WIDTH, None] + 3e-3 * variances[0]).sqrt()
    rotation, _ = torch.linalg.qr(torch.randn(VISION_WIDTH, VISION_WIDTH))
    embeddings.patch_embedding.weight.copy_((rotation @ whitening).reshape(VISION_WIDTH, 3, PATCH, PATCH))

    frequencies = 2 * torch.pi / torch.tensor([16.0, 8.0, 5.0, 3.2])
    position_basis, _ = torch.linalg.qr(torch.randn(VISION_WIDTH, 16))
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    waves = torch.cat(
        [_compute_waves(columns.flatten(), frequencies), _compute_waves(rows.flatten(), frequencies)], dim=1
    )
    embeddings.position_embedding.weight.normal_(0, 0.1)
    embeddings.position_embedding.weight[1:] += 1.8 * waves @ position_basis.T

    layers = vision.tower.base_model.encoder.layers
    for layer in layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.fc1):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight, gain=RESIDUAL_SCALE)
    width = VISION_WIDTH // VISION_HEADS
    for layer, neighbours in zip(layers, NEIGHBOURS, strict=False):
        for head, (down, right) in enumerate(neighbours):
            rotation_ = torch.block_diag(_rotate_waves(frequencies, right), _rotate_waves(frequencies, down))  # type: ignore[no-untyped-call]
            rows_of_head = slice(head * width, head * width + 16)
            layer.self_attn.k_proj.weight[rows_of_head] = LOCALITY * position_basis.T
            layer.self_attn.q_proj.weight[rows_of_head] = LOCALITY * rotation_ @ position_basis.T
    vision.projector.linear_2.weight.mul_(0.5)
    vision.projector.linear_2.bias.copy_(vision.empty)


def _compute_waves(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    angles = positions[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _rotate_waves(frequencies: torch.Tensor, offset: int) -> torch.Tensor:
    """Return the matrix that maps the waves of position x to those of x + offset."""
    cosines, sines = torch.diag((frequencies * offset).cos()), torch.diag((frequencies * offset).sin())
    return torch.cat([torch.cat([cosines, -sines], 1), torch.cat([sines, cosines], 1)], 0)


@torch.no_grad()
def rescale_tokens(vision: VisionModel, scale: LogitScale) -> None:
    """Move the projector's output to another scale and onto the span of the class vectors; logits stay the same."""
    vectors, empty = vision.class_directions, vision.empty
    factor = vision.scale.sharpness / scale.sharpness
    shift = (scale.bias - vision.scale.bias) / scale.sharpness
    span = factor * vectors.T @ torch.linalg.solve(vectors @ vectors.T, vectors)
    last = vision.projector.linear_2
    last.weight.copy_(span @ last.weight)
    last.bias.copy_(empty + span @ (last.bias - empty) + shift * vectors.sum(0))
    vision.scale = scale


@torch.no_grad()
def measure_recognition(vision: VisionModel, dataset: SceneDataset, count: int = 300) -> dict[str, float]:
    """Measure precision and recall of "this category is somewhere in the image"."""
    device = vision.empty.device
    count = min(count, len(dataset))
    logits = vision.compute_evidence(
        vision.compute_image_tokens(normalize_pixels(np.array(dataset.pixels[:count])).to(device))
    ).cpu()
    present = (
        torch.from_numpy(patch_targets(np.array(dataset.instance_maps[:count]), dataset.objects[:count])).amax(1) > 0
    )
    found = logits.amax(1) > 0
    hits = float((found & present).sum())
    return {"precision": hits / max(1.0, float(found.sum())), "recall": hits / float(present.sum())}


def train_vision(
    work_dir: Path,
    dataset: SceneDataset,
    tuning_dataset: SceneDataset,
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation = FULL_AUGMENTATION,
    seed: int = 11,
) -> VisionModel:
    """Train the vision model, from its last checkpoint if there is one."""
    device = select_device()
    torch.manual_seed(seed)
    vision = VisionModel()
    init_vision(vision, dataset)
    vision.to(device)
    trainer = Trainer("vision", work_dir, vision, steps, seed=seed, horizon=HORIZON)

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = sample_batch(rng, dataset, batch_size, masked_fraction=augmentation.masked_fraction, shift=10)
        with autocast(device):
            tokens = vision.compute_image_tokens(batch.pixels.to(device))
        loss = vision.loss(tokens, batch.present.to(device))
        return loss, {"loss": loss.item()}

    for step in trainer:
        figures = {}
        if step % 200 == 199:
            vision.eval()
            figures = measure_recognition(vision, tuning_dataset)
            vision.train()
        trainer.update(compute_loss, figures)
    return vision


def copy_weights(vision: VisionModel, tower: CLIPVisionModel, projector: nn.Module) -> None:
    """Copy the weights into the parts of a LLaVA model."""
    tower.load_state_dict(vision.tower.state_dict())
    projector.load_state_dict(vision.projector.state_dict())
