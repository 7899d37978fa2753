"""Position waves that are written into image tokens before the objects stage."""

import numpy as np
import torch
from torch import nn

from embedded.data.scene_dataset import SceneDataset
from embedded.training.batch import normalize_pixels
from embedded.training.model_config import GRID, WIDTH, patch_features
from embedded.training.vision_stage import VisionModel

WAVELENGTHS = (16.0, 8.0, 5.0)
"""In patches. Three waves along each side of the image encode the position of a patch."""
EMBEDDING_SCALE, TOKEN_SCALE = 1.5, 1.0
"""Amplitude of the waves after the tower's first norm and in image tokens."""
GELU_GAIN, GELU_SHIFT = 0.6, 3.0
"""GELU is nearly linear from GELU_SHIFT - 2 on."""


def compute_position_waves() -> torch.Tensor:
    """Return the position waves of each patch, [64, 12]."""
    angles = 2 * torch.pi * (torch.arange(GRID)[:, None] + 0.5) / torch.tensor(WAVELENGTHS)
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    waves = torch.cat([waves.repeat_interleave(GRID, 0), waves.repeat(GRID, 1)], 1)
    return waves - waves.mean(0)


def ridge_regression(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Fit the matrix [k, m] that maps inputs [n, k] to targets [n, m] by ridge regression."""
    gram = inputs.T @ inputs
    gram += 1e-3 * gram.diag().mean() * torch.eye(len(gram)).to(gram)
    solution: torch.Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return solution


@torch.no_grad()
def write_positions(vision: VisionModel, dataset: SceneDataset, count: int = 300) -> float:
    """Write the position of each patch into its image token, as waves outside the span of the class vectors.

    The tower knows the positions of its patches, but its output hardly contains them. Hundreds of steps with a loss
    on the position did not change that. So the waves are added to the position embeddings, in the directions that the
    tower uses least. The least active units of the projector are replaced by a regression that reads the waves.

    Args:
        vision: The model, changed in place.
        dataset: Scenes to measure activations on.
        count: Maximum number of scenes.

    Returns:
        Fraction of the waves' variance that the features explain.
    """
    device = vision.empty.device
    pixels = normalize_pixels(np.array(dataset.pixels[:count])).to(device)
    waves = compute_position_waves().to(device)
    features = patch_features(vision.tower, pixels).flatten(0, 1).double()
    unused_directions = torch.linalg.eigh(features.T.cov()).eigenvectors[:, : waves.shape[1]].float()
    embeddings, norm = vision.tower.base_model.embeddings, vision.tower.base_model.pre_layrnorm
    scale = EMBEDDING_SCALE * embeddings(pixels)[:, 1:].std(-1).mean()
    embeddings.position_embedding.weight[1:] += scale * (waves @ unused_directions.T) / norm.weight

    features = patch_features(vision.tower, pixels).flatten(0, 1).double()
    mean, target = features.mean(0), waves.double().repeat(len(pixels), 1)
    readout = ridge_regression(features - mean, target)
    explained = 1 - ((features - mean) @ readout - target).square().sum() / target.square().sum()

    first, last = vision.projector.linear_1, vision.projector.linear_2
    hidden = nn.functional.gelu(first(features.float()))
    idle = (hidden.std(0) * last.weight.norm(dim=0)).argsort()[: waves.shape[1]]
    last.bias.add_(last.weight[:, idle] @ hidden.mean(0)[idle])
    spanned, _ = torch.linalg.qr(torch.cat([vision.class_directions, vision.empty[None]]).T)
    free = torch.randn(WIDTH, len(idle)).to(device)
    directions, _ = torch.linalg.qr(free - spanned @ (spanned.T @ free))
    first.weight[idle] = GELU_GAIN * readout.T.float()
    first.bias[idle] = GELU_SHIFT - GELU_GAIN * (mean @ readout).float()
    last.weight[:, idle] = TOKEN_SCALE / GELU_GAIN * directions
    last.bias.sub_(TOKEN_SCALE / GELU_GAIN * GELU_SHIFT * directions.sum(1))
    return float(explained)
