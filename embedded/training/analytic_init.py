"""Weights written analytically before the details stage, which let words read the objects of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from embedded.data.categories import INDEX, NAMES
from embedded.data.scene_dataset import SceneDataset
from embedded.training.batch import center_targets, normalize_pixels, patch_targets
from embedded.training.joint_stage import JointModel
from embedded.training.model_config import IMAGE_TOKENS
from embedded.training.object_stage import ObjectHeads
from embedded.training.packing import CATEGORY_BY_WORD, PackedBatch, Packer
from embedded.training.position_init import WAVELENGTHS, compute_position_waves, ridge_regression

CATEGORY_LOGIT, CENTER_LOGIT, COUNT_LOGIT = 5.0, 4.0, 6.0
"""Preference of heads, in nats, for patches of the named category, for centers of objects, and for any patch."""
GATE_OPEN, GATE_CLOSED = 5.0, 1.5
"""Input of a gate above the rest at its own word, and its negative input at other words."""
WRITE_SCALE = 2.0
"""Amplitude of what is written at a word, relative to its other activations."""


@torch.no_grad()
def write_object_readout(joint: JointModel, object_heads: ObjectHeads, packer: Packer, dataset: SceneDataset) -> None:
    """Make the first layer of the language model read number and position of objects at the word that names them.

    Two heads attend to all patches equally and copy the centers of 24 categories each. Their mean over the image gives
    the number of objects of every category. A third head attends from the word to the patch with the center of such
    an object and copies its position waves. 48 gates of the feed-forward layer, one for each category, open at their
    own word and pass its number. The previous function of these weights is lost; the stage repairs it.

    Args:
        joint: The model, changed in place.
        object_heads: Heads that predict centers from image tokens.
        packer: Builds the questions.
        dataset: Scenes to measure activations on.
    """
    places = 4 * len(WAVELENGTHS)
    states = collect_word_states(joint, packer, dataset).states
    unused_directions = torch.linalg.eigh(states.T.cov().double()).eigenvectors[:, : len(NAMES) + places + 1]
    unused_directions = (WRITE_SCALE * states.std(0).mean() * unused_directions).float()
    write_heads(joint, object_heads, packer, dataset, unused_directions[:, :-1])
    write_gates(joint, unused_directions[:, -1:], collect_word_states(joint, packer, dataset))


def write_heads(
    joint: JointModel,
    object_heads: ObjectHeads,
    packer: Packer,
    dataset: SceneDataset,
    output_directions: torch.Tensor,
    count: int = 300,
) -> None:
    """Write the first three heads of the first layer.

    Args:
        joint: The model, changed in place.
        object_heads: Heads that predict centers from image tokens.
        packer: Encodes the words.
        dataset: Scenes to measure activations on.
        output_directions: Where the heads write numbers and waves, [256, 48 + 12].
        count: Maximum number of scenes.
    """
    layer, device = joint.language.model.model.layers[0], joint.vision.empty.device
    attention = layer.self_attn
    scenes = [dataset.get_scene(index) for index in range(min(count, len(dataset)))]
    instance_map = np.stack([scene.instance_map for scene in scenes])
    tokens = joint.vision.compute_image_tokens(
        normalize_pixels(np.stack([scene.pixels for scene in scenes])).to(device)
    )
    tokens = tokens.flatten(0, 1)
    words = joint.language.model.model.embed_tokens.weight
    patch_inputs, word_inputs = layer.input_layernorm(tokens).double(), layer.input_layernorm(words).double()
    present = torch.from_numpy(patch_targets(instance_map, [scene.objects for scene in scenes])).flatten(0, 1)
    centers = object_heads.centers(tokens).double()
    is_word_of = torch.zeros(len(words), len(NAMES))
    for word, name in CATEGORY_BY_WORD.items():
        is_word_of[packer.encode(" " + word)[-1], INDEX[name]] = 1

    def fit_readout(patch_values: torch.Tensor | float, word_values: torch.Tensor | float, size: int) -> torch.Tensor:
        """Fit a readout [256, size] with the given values on patches and on words."""
        targets = [
            value.to(patch_inputs)
            if isinstance(value, torch.Tensor)
            else torch.full((len(rows), size), value).to(patch_inputs)
            for value, rows in ((patch_values, patch_inputs), (word_values, word_inputs))
        ]
        return ridge_regression(torch.cat([patch_inputs, word_inputs]), torch.cat(targets))

    name_readout = _calibrate(word_inputs, fit_readout(0.0, is_word_of, len(NAMES)), is_word_of)
    any_name_readout = name_readout.sum(1, keepdim=True)
    category_readout = _calibrate(patch_inputs, fit_readout(present, 0.0, len(NAMES)), present)
    center_readout = _calibrate(
        patch_inputs, fit_readout(centers.sum(1, keepdim=True), 0.0, 1), centers.sum(1, keepdim=True)
    )
    wave_readout = fit_readout(compute_position_waves().repeat(len(scenes), 1), 0.0, 4 * len(WAVELENGTHS))
    count_readout = fit_readout(IMAGE_TOKENS * centers, 0.0, len(NAMES))
    patch_readout = fit_readout(1.0, 0.0, 1)

    width = attention.head_dim
    slow_dims = [*range(width // 4, width // 2), *range(3 * width // 4, width)]  # where rotary positions hardly matter
    frame = _spread_vectors(len(NAMES), len(slow_dims) - 1).to(patch_inputs)
    half = len(NAMES) // 2
    heads = (
        (COUNT_LOGIT * any_name_readout, patch_readout, count_readout[:, :half]),
        (COUNT_LOGIT * any_name_readout, patch_readout, count_readout[:, half:]),
        (
            torch.cat([CATEGORY_LOGIT * name_readout @ frame, CENTER_LOGIT * any_name_readout], 1),
            torch.cat([category_readout @ frame, center_readout], 1),
            wave_readout,
        ),
    )
    columns_written = 0
    for head, (query, key, value) in enumerate(heads):
        rows = torch.arange(head * width, (head + 1) * width, device=device)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows] = 0
        attention.o_proj.weight[:, rows] = 0
        used_rows = rows[slow_dims[-query.shape[1] :]]
        attention.q_proj.weight[used_rows] = (width**0.5 * query).T.float()
        attention.k_proj.weight[used_rows] = key.T.float()
        size = value.shape[1]
        attention.v_proj.weight[rows[:size]] = value.T.float()
        attention.o_proj.weight[:, rows[:size]] = output_directions[:, columns_written : columns_written + size]
        columns_written += size


def write_gates(joint: JointModel, output_direction: torch.Tensor, words: WordStates) -> None:
    """Write gates into the 48 least active units of the feed-forward layer.

    Args:
        joint: The model, changed in place.
        output_direction: Where the gates write the number of named objects, [256, 1].
        words: Activations at the words that name a category.
    """
    mlp = joint.language.model.model.layers[0].mlp
    numbers = ridge_regression(words.inputs, words.numbers).T
    is_own_word = nn.functional.one_hot(words.categories, len(NAMES)).to(words.inputs)
    bias_readout = ridge_regression(words.inputs, torch.ones_like(is_own_word[:, :1]))
    gates = (
        GATE_OPEN * _calibrate(words.inputs, ridge_regression(words.inputs, is_own_word), is_own_word)
        - GATE_CLOSED * bias_readout
    ).T
    units = mlp.act_fn(mlp.gate_proj(words.inputs.float())) * mlp.up_proj(words.inputs.float())
    idle = (units.std(0) * mlp.down_proj.weight.norm(dim=0)).argsort()[: len(NAMES)]
    mlp.gate_proj.weight[idle], mlp.up_proj.weight[idle] = gates.float(), numbers.float()
    mlp.down_proj.weight[:, idle] = output_direction / GATE_OPEN


@dataclass(frozen=True)
class WordStates:
    """Activations at words that name a category, in questions about images."""

    inputs: torch.Tensor  # [words, 256], of the feed-forward part of the first layer
    states: torch.Tensor  # [words, 256], after the second layer
    categories: torch.Tensor  # [words]
    numbers: torch.Tensor  # [words, 48], of the objects of every category in the image


def collect_word_states(
    joint: JointModel, packer: Packer, dataset: SceneDataset, count: int = 384, batch_size: int = 48
) -> WordStates:
    """Run questions about the first `count` scenes and collect the activations at the words that name a category."""
    device, mlp = joint.vision.empty.device, joint.language.model.model.layers[0].mlp
    collected: list[WordStates] = []
    mlp_inputs: list[torch.Tensor] = []
    handle = mlp.register_forward_pre_hook(lambda module, inputs: mlp_inputs.append(inputs[0]))
    category_by_token = {packer.encode(" " + word)[-1]: INDEX[name] for word, name in CATEGORY_BY_WORD.items()}

    def capture(states: tuple[torch.Tensor, ...], batch: PackedBatch) -> torch.Tensor:
        numbers = torch.from_numpy(center_targets(scenes)).sum(1)
        rows, places = (batch.presence_labels >= 0).nonzero(as_tuple=True)
        categories = torch.tensor(
            [category_by_token[int(batch.ids[row, place])] for row, place in zip(rows, places, strict=True)]
        )
        collected.append(
            WordStates(
                mlp_inputs.pop()[rows, places].double(),
                states[2][rows, places].double(),
                categories.to(device),
                numbers[rows].to(device).double(),
            )
        )
        return states[2].sum() * 0

    for start in range(0, min(count, len(dataset)), batch_size):
        scenes = [dataset.get_scene(index) for index in range(start, min(start + batch_size, len(dataset)))]
        pixels = normalize_pixels(np.stack([scene.pixels for scene in scenes])).to(device)
        batch = packer.batch(np.random.default_rng(start), scenes, [True] * len(scenes))
        joint.language(batch, joint.vision.compute_image_tokens(pixels).flatten(0, 1), capture)
    handle.remove()
    fields = (torch.cat(list(values)) for values in zip(*(vars(words).values() for words in collected), strict=True))
    return WordStates(*fields)


def _calibrate(inputs: torch.Tensor, readout: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Scale each readout so that its mean is 1 where its target is 1."""
    targets = targets.to(inputs)
    return readout / ((inputs @ readout * targets).sum(0) / targets.sum(0).clamp_min(1)).clamp_min(0.1)


def _spread_vectors(count: int, width: int) -> torch.Tensor:
    """Return unit vectors [count, width] with small pairwise similarities."""
    frame = nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(7)))
    for _ in range(300):
        similarities = (frame @ frame.T).clamp(-0.2, 0.2).fill_diagonal_(1)
        values, vectors = torch.linalg.eigh(similarities)
        frame = nn.functional.normalize(vectors[:, -width:] * values[-width:].clamp_min(0).sqrt())
    return frame
