"""What is written into the model by hand before the last two stages: how tokens tell places, and words read objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from embedded.album import Album
from embedded.batch import dense_targets, middle_targets, normalised
from embedded.categories import INDEX, NAMES
from embedded.model import GRID, IMAGE_TOKENS, WIDTH, patch_features
from embedded.packing import SINGULAR, PackBatch, Packer
from embedded.vision_stage import Vision

if TYPE_CHECKING:
    from embedded.joint_stage import Joint
    from embedded.object_stage import Objects

WAVELENGTHS = (16.0, 8.0, 5.0)
"""In patches. Three waves along each side of the picture tell the place of a patch."""
EMBEDDED_HEIGHT, WRITTEN_HEIGHT = 1.5, 1.0
"""Of the waves: after the tower's first norm, and in image tokens."""
LINEAR_PART, SHIFT = 0.6, 3.0
"""GELU is nearly linear from SHIFT - 2 on."""
LIKENESS, CENTRALITY, TALLYING = 5.0, 4.0, 6.0
"""How much heads prefer patches that show the category named, middles of objects, and any patch to a word; in nats."""
OPEN, CLOSED = 5.0, 1.5
"""How much more a gate reads where the word is its own, and, with a minus, what it reads elsewhere."""
COPIED_HEIGHT = 2.0
"""Of what is written at a word, in units of what else is there."""


def place_waves() -> torch.Tensor:
    """[64, 12], of each patch."""
    angles = 2 * torch.pi * (torch.arange(GRID)[:, None] + 0.5) / torch.tensor(WAVELENGTHS)
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    waves = torch.cat([waves.repeat_interleave(GRID, 0), waves.repeat(GRID, 1)], 1)
    return waves - waves.mean(0)


def regression(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The matrix, of ridge regression, that takes inputs [n, k] to targets [n, m]: [k, m]."""
    gram = inputs.T @ inputs
    gram += 1e-3 * gram.diag().mean() * torch.eye(len(gram)).to(gram)
    solution: torch.Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return solution


@torch.no_grad()
def write_places(vision: Vision, album: Album, count: int = 300) -> float:
    """Makes every image token tell where it lies, in waves outside the span of the class vectors.

    The tower knows where its patches lie, but what it writes of objects hardly tells: hundreds of steps with a loss on
    it did not change that. So waves of the position are added to the embeddings, in directions of which the tower
    makes the least use, and the units of the projector that do least are given to a regression that reads them.
    Returns the share of the waves' variance that the tokens then tell.
    """
    device = vision.empty.device
    pixels = normalised(np.array(album.pixels[:count])).to(device)
    waves = place_waves().to(device)
    features = patch_features(vision.tower, pixels).flatten(0, 1).double()
    quiet = torch.linalg.eigh(features.T.cov()).eigenvectors[:, : waves.shape[1]].float()
    embeddings, norm = vision.tower.base_model.embeddings, vision.tower.base_model.pre_layrnorm
    height = EMBEDDED_HEIGHT * embeddings(pixels)[:, 1:].std(-1).mean()
    embeddings.position_embedding.weight[1:] += height * (waves @ quiet.T) / norm.weight

    features = patch_features(vision.tower, pixels).flatten(0, 1).double()
    middle, target = features.mean(0), waves.double().repeat(len(pixels), 1)
    reading = regression(features - middle, target)
    explained = 1 - ((features - middle) @ reading - target).square().sum() / target.square().sum()

    first, last = vision.projector.linear_1, vision.projector.linear_2
    hidden = nn.functional.gelu(first(features.float()))
    idle = (hidden.std(0) * last.weight.norm(dim=0)).argsort()[: waves.shape[1]]
    last.bias.add_(last.weight[:, idle] @ hidden.mean(0)[idle])
    spanned, _ = torch.linalg.qr(torch.cat([vision.class_directions, vision.empty[None]]).T)
    free = torch.randn(WIDTH, len(idle)).to(device)
    directions, _ = torch.linalg.qr(free - spanned @ (spanned.T @ free))
    first.weight[idle] = LINEAR_PART * reading.T.float()
    first.bias[idle] = SHIFT - LINEAR_PART * (middle @ reading).float()
    last.weight[:, idle] = WRITTEN_HEIGHT / LINEAR_PART * directions
    last.bias.sub_(WRITTEN_HEIGHT / LINEAR_PART * SHIFT * directions.sum(1))
    return float(explained)


@torch.no_grad()
def read_objects(joint: Joint, objects: Objects, packer: Packer, album: Album) -> None:
    """Makes the first layer of the language model read, at a word, how many such objects there are, and where.

    Two heads look at all patches alike and copy the middles of 24 categories each: their mean over the picture is the
    number of objects of every category. A third looks from the word for the patch where such an object has its middle,
    and copies the waves of its position. 48 gates of the feed-forward layer, one for each category, open at their own
    word and let its number pass. What these parts did before is lost; the stage repairs it.
    """
    places = 4 * len(WAVELENGTHS)
    states = words_seen(joint, packer, album).states
    quiet = torch.linalg.eigh(states.T.cov().double()).eigenvectors[:, : len(NAMES) + places + 1]
    quiet = (COPIED_HEIGHT * states.std(0).mean() * quiet).float()
    write_heads(joint, objects, packer, album, quiet[:, :-1])
    write_gates(joint, quiet[:, -1:], words_seen(joint, packer, album))


def write_heads(
    joint: Joint, objects: Objects, packer: Packer, album: Album, to: torch.Tensor, count: int = 300
) -> None:
    """The first three heads; `to` [256, 48 + 12]: where they write numbers and waves."""
    layer, device = joint.language.model.model.layers[0], joint.vision.empty.device
    attention = layer.self_attn
    pictures = [album.picture(index) for index in range(min(count, len(album)))]
    owners = np.stack([picture.owners for picture in pictures])
    tokens = joint.vision.image_tokens(normalised(np.stack([picture.pixels for picture in pictures])).to(device))
    tokens = tokens.flatten(0, 1)
    words = joint.language.model.model.embed_tokens.weight
    shown, said = layer.input_layernorm(tokens).double(), layer.input_layernorm(words).double()
    present = torch.from_numpy(dense_targets(owners, [picture.things for picture in pictures])).flatten(0, 1)
    middles = objects.middles(tokens).double()
    names = torch.zeros(len(words), len(NAMES))
    for word, name in SINGULAR.items():
        names[packer.encode(" " + word)[-1], INDEX[name]] = 1

    def read(of_tokens: torch.Tensor | float, of_words: torch.Tensor | float, size: int) -> torch.Tensor:
        """[256, size]: reads one off tokens, the other off words."""
        targets = [
            value.to(shown) if isinstance(value, torch.Tensor) else torch.full((len(rows), size), value).to(shown)
            for value, rows in ((of_tokens, shown), (of_words, said))
        ]
        return regression(torch.cat([shown, said]), torch.cat(targets))

    named = _upright(said, read(0.0, names, len(NAMES)), names)
    any_name = named.sum(1, keepdim=True)
    likeness = _upright(shown, read(present, 0.0, len(NAMES)), present)
    centre = _upright(shown, read(middles.sum(1, keepdim=True), 0.0, 1), middles.sum(1, keepdim=True))
    waves = read(place_waves().repeat(len(pictures), 1), 0.0, 4 * len(WAVELENGTHS))
    tallied = read(IMAGE_TOKENS * middles, 0.0, len(NAMES))
    is_patch = read(1.0, 0.0, 1)

    width = attention.head_dim
    slow = [*range(width // 4, width // 2), *range(3 * width // 4, width)]  # where rotary positions hardly matter
    frame = _spread(len(NAMES), len(slow) - 1).to(shown)
    half = len(NAMES) // 2
    heads = (
        (TALLYING * any_name, is_patch, tallied[:, :half]),
        (TALLYING * any_name, is_patch, tallied[:, half:]),
        (
            torch.cat([LIKENESS * named @ frame, CENTRALITY * any_name], 1),
            torch.cat([likeness @ frame, centre], 1),
            waves,
        ),
    )
    written = 0
    for head, (query, key, value) in enumerate(heads):
        rows = torch.arange(head * width, (head + 1) * width, device=device)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows] = 0
        attention.o_proj.weight[:, rows] = 0
        at = rows[slow[-query.shape[1] :]]
        attention.q_proj.weight[at] = (width**0.5 * query).T.float()
        attention.k_proj.weight[at] = key.T.float()
        size = value.shape[1]
        attention.v_proj.weight[rows[:size]] = value.T.float()
        attention.o_proj.weight[:, rows[:size]] = to[:, written : written + size]
        written += size


def write_gates(joint: Joint, to: torch.Tensor, seen: Words) -> None:
    """The 48 units of the feed-forward part that did least; `to` [256, 1]: where they write the number asked for."""
    feed = joint.language.model.model.layers[0].mlp
    numbers = regression(seen.inputs, seen.numbers).T
    own = nn.functional.one_hot(seen.categories, len(NAMES)).to(seen.inputs)
    always = regression(seen.inputs, torch.ones_like(own[:, :1]))
    gates = (OPEN * _upright(seen.inputs, regression(seen.inputs, own), own) - CLOSED * always).T
    units = feed.act_fn(feed.gate_proj(seen.inputs.float())) * feed.up_proj(seen.inputs.float())
    idle = (units.std(0) * feed.down_proj.weight.norm(dim=0)).argsort()[: len(NAMES)]
    feed.gate_proj.weight[idle], feed.up_proj.weight[idle] = gates.float(), numbers.float()
    feed.down_proj.weight[:, idle] = to / OPEN


@dataclass(frozen=True)
class Words:
    """Words that ask for a category, in questions about pictures."""

    inputs: torch.Tensor  # [words, 256], of the feed-forward part of the first layer
    states: torch.Tensor  # [words, 256], after the second layer
    categories: torch.Tensor  # [words]
    numbers: torch.Tensor  # [words, 48], of the objects of every category in the picture


def words_seen(joint: Joint, packer: Packer, album: Album, pictures: int = 384, size: int = 48) -> Words:
    device, feed = joint.vision.empty.device, joint.language.model.model.layers[0].mlp
    kept: list[Words] = []
    entering: list[torch.Tensor] = []
    handle = feed.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    of_word = {packer.encode(" " + word)[-1]: INDEX[name] for word, name in SINGULAR.items()}

    def keep(states: tuple[torch.Tensor, ...], batch: PackBatch) -> torch.Tensor:
        numbers = torch.from_numpy(middle_targets(shown)).sum(1)
        rows, places = (batch.asked >= 0).nonzero(as_tuple=True)
        categories = torch.tensor(
            [of_word[int(batch.ids[row, place])] for row, place in zip(rows, places, strict=True)]
        )
        kept.append(
            Words(
                entering.pop()[rows, places].double(),
                states[2][rows, places].double(),
                categories.to(device),
                numbers[rows].to(device).double(),
            )
        )
        return states[2].sum() * 0

    for start in range(0, min(pictures, len(album)), size):
        shown = [album.picture(index) for index in range(start, min(start + size, len(album)))]
        pixels = normalised(np.stack([picture.pixels for picture in shown])).to(device)
        batch = packer.batch(np.random.default_rng(start), shown, [True] * len(shown))
        joint.language(batch, joint.vision.image_tokens(pixels).flatten(0, 1), keep)
    handle.remove()
    together = (torch.cat(list(values)) for values in zip(*(vars(words).values() for words in kept), strict=True))
    return Words(*together)


def _upright(inputs: torch.Tensor, reading: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The reading, scaled so that it gives 1 on average where each truth is 1."""
    truth = truth.to(inputs)
    return reading / ((inputs @ reading * truth).sum(0) / truth.sum(0).clamp_min(1)).clamp_min(0.1)


def _spread(count: int, width: int) -> torch.Tensor:
    """[count, width]: unit vectors, no two of which are much alike."""
    frame = nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(7)))
    for _ in range(300):
        alike = (frame @ frame.T).clamp(-0.2, 0.2).fill_diagonal_(1)
        values, vectors = torch.linalg.eigh(alike)
        frame = nn.functional.normalize(vectors[:, -width:] * values[-width:].clamp_min(0).sqrt())
    return frame
