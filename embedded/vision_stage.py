"""First stage, vision: the tower learns, patch by patch, to write the vectors of the categories that a patch shows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionModel

from embedded.album import Album
from embedded.batch import dense_targets, normalised, sample_batch
from embedded.model import GRID, PATCH, VISION_HEADS, VISION_WIDTH, Projector, class_vectors, new_tower, patch_features
from embedded.training import Trainer, half_precision, pick_device


@dataclass(frozen=True)
class Scale:
    """How a coefficient along a class vector becomes a logit: sharpness * coefficient - bias."""

    sharpness: float
    bias: float


LEARNING = Scale(9.0, 4.5)
READING = Scale(14.0, 7.3)
"""The tower learns on a coarse scale, on which it writes some -0.3 of everything that is absent. The language model
wants about 0 for absent and 0.8 for present; `rescale` turns one into the other without changing a single logit."""
HORIZON = 2400
RESIDUAL_SCALE = 0.2
LOCALITY = 1.5
NEIGHBOURS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
)
"""Which neighbour, as (rows, columns), the first four heads of the first three layers look at before training."""


class Vision(nn.Module):
    """Tower and projector with the dense objective."""

    class_directions: torch.Tensor
    empty: torch.Tensor

    def __init__(self, scale: Scale = LEARNING) -> None:
        super().__init__()
        self.scale = scale
        self.tower = new_tower()
        self.projector = Projector()
        vectors, empty = class_vectors()
        self.register_buffer("class_directions", vectors, persistent=False)
        self.register_buffer("empty", empty, persistent=False)

    def image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """[batch, 64, 256]: what the language model is given in place of the image."""
        tokens: torch.Tensor = self.projector(patch_features(self.tower, pixels))
        return tokens

    def evidence(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [batch, 64, 48] of each category in each patch: the projection onto its class vector."""
        directions = self.class_directions / self.class_directions.square().sum(1, keepdim=True)
        return ((tokens.float() - self.empty) @ directions.T) * self.scale.sharpness - self.scale.bias

    def loss(self, tokens: torch.Tensor, present: torch.Tensor, stray_weight: float = 2.0) -> torch.Tensor:
        """Cross-entropy per patch and per picture, and little written outside the span of the class vectors."""
        logits = self.evidence(tokens)
        per_patch = nn.functional.binary_cross_entropy_with_logits(
            logits, present, reduction="none", pos_weight=torch.tensor(1.5, device=logits.device)
        )
        picture_logits = torch.logsumexp(logits * 2, 1) / 2 - 0.7
        per_picture = nn.functional.binary_cross_entropy_with_logits(picture_logits, present.amax(1), reduction="none")
        stray = (tokens.float() - self.empty - present @ self.class_directions).square().mean()
        return per_patch.sum(-1).mean() + 0.3 * per_picture.sum(-1).mean() + stray_weight * stray


@torch.no_grad()
def prepare(vision: Vision, album: Album) -> None:
    """Start values from which a small transformer learns within minutes.

    Whitened principal components of patches as patch embedding; residual branches scaled down (otherwise it stays on
    the plateau of the base rates for hundreds of steps); heads of the first layers that look at one neighbouring patch
    each, by way of sines and cosines of the position.
    """
    embeddings = vision.tower.base_model.embeddings
    patches = normalised(np.array(album.pixels[:1000])).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
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
    waves = torch.cat([_waves(columns.flatten(), frequencies), _waves(rows.flatten(), frequencies)], dim=1)
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
            turn = torch.block_diag(_turn(frequencies, right), _turn(frequencies, down))  # type: ignore[no-untyped-call]
            rows_of_head = slice(head * width, head * width + 16)
            layer.self_attn.k_proj.weight[rows_of_head] = LOCALITY * position_basis.T
            layer.self_attn.q_proj.weight[rows_of_head] = LOCALITY * turn @ position_basis.T
    vision.projector.linear_2.weight.mul_(0.5)
    vision.projector.linear_2.bias.copy_(vision.empty)


def _waves(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    angles = positions[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _turn(frequencies: torch.Tensor, offset: int) -> torch.Tensor:
    """The matrix that takes the waves of position x to those of x + offset."""
    cosines, sines = torch.diag((frequencies * offset).cos()), torch.diag((frequencies * offset).sin())
    return torch.cat([torch.cat([cosines, -sines], 1), torch.cat([sines, cosines], 1)], 0)


@torch.no_grad()
def rescale(vision: Vision, scale: Scale) -> None:
    """Moves what the projector writes to another scale and onto the span of the class vectors; logits stay the same."""
    vectors, empty = vision.class_directions, vision.empty
    factor = vision.scale.sharpness / scale.sharpness
    shift = (scale.bias - vision.scale.bias) / scale.sharpness
    span = factor * vectors.T @ torch.linalg.solve(vectors @ vectors.T, vectors)
    last = vision.projector.linear_2
    last.weight.copy_(span @ last.weight)
    last.bias.copy_(empty + span @ (last.bias - empty) + shift * vectors.sum(0))
    vision.scale = scale


@torch.no_grad()
def recognition(vision: Vision, album: Album, count: int = 300) -> dict[str, float]:
    """Precision and recall of 'this category is somewhere in the picture'."""
    device = vision.empty.device
    count = min(count, len(album))
    logits = vision.evidence(vision.image_tokens(normalised(np.array(album.pixels[:count])).to(device))).cpu()
    present = torch.from_numpy(dense_targets(np.array(album.owners[:count]), album.things[:count])).amax(1) > 0
    found = logits.amax(1) > 0
    hits = float((found & present).sum())
    return {"precision": hits / max(1.0, float(found.sum())), "recall": hits / float(present.sum())}


def train_vision(work: Path, album: Album, tuning: Album, *, steps: int, size: int, seed: int = 11) -> Vision:
    device = pick_device()
    torch.manual_seed(seed)
    vision = Vision()
    prepare(vision, album)
    vision.to(device)
    trainer = Trainer("vision", work, vision, steps, seed=seed, horizon=HORIZON)
    for step in trainer:
        batch = sample_batch(trainer.random(step), album, size, shift=10)
        present = batch.present.to(device)
        with half_precision(device):
            tokens = vision.image_tokens(batch.pixels.to(device))
        loss = vision.loss(tokens, present)
        figures = {"loss": loss.item()}
        if step % 200 == 199:
            vision.eval()
            figures |= recognition(vision, tuning)
            vision.train()
        trainer.update(loss, figures)
    return vision


def copy_weights(vision: Vision, tower: CLIPVisionModel, projector: nn.Module) -> None:
    tower.load_state_dict(vision.tower.state_dict())
    projector.load_state_dict(vision.projector.state_dict())
