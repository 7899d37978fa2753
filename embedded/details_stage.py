"""Fifth stage: number, position and colour of objects, with what was learned before kept in the mixture."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from embedded.album import Album
from embedded.batch import normalised
from embedded.details import SIZES, facts_of_things
from embedded.evaluate import Asker, details
from embedded.finish_stage import REPETITION_WEIGHT, STRAY_WEIGHT, Finishing
from embedded.joint_stage import VISION_RATE, Joint, assembled, seen_and_said
from embedded.language_stage import PROBED_LAYERS
from embedded.model import GRID, IMAGE_TOKENS, PATCH, WIDTH, patch_features
from embedded.packing import PackBatch, Packer, TextMix
from embedded.picture import Picture
from embedded.training import Trainer, pick_device
from embedded.vision_stage import Vision

MIX = TextMix(
    caption=1.0,
    second_caption=0.3,
    listing=0.3,
    detail=0.3,
    inventing=0.45,
    gullible=0.3,
    questions=8,
    presence=5,
    length=352,
)
DETAIL_WEIGHT, WORD_WEIGHT, PATCH_WEIGHT, CELL_WEIGHT = 3.0, 1.0, 1.0, 0.3
WAVELENGTHS = (16.0, 8.0, 5.0)
"""In patches. Three waves along each side of the picture tell the place of a patch."""
EMBEDDED_HEIGHT, WRITTEN_HEIGHT, COPIED_HEIGHT = 1.5, 1.0, 2.0
"""Of the waves: after the tower's first norm, in image tokens, and at a word, there in units of what else is there."""
LINEAR_PART, SHIFT = 0.6, 3.0
"""GELU is nearly linear from SHIFT - 2 on."""
LEAST_COVERED = 0.1
"""A patch tells the facts of the object that fills most of it, if that is at least this share."""


class Details(Finishing):
    """Heads that exist during training only: facts are learned where they are seen and where they are asked for."""

    def __init__(self, joint: Joint) -> None:
        super().__init__(joint)
        self.patches = nn.Linear(WIDTH, sum(SIZES))
        self.words = nn.ModuleList(nn.Linear(WIDTH, sum(SIZES)) for _ in PROBED_LAYERS)

    def patch_loss(self, tokens: torch.Tensor, pictures: list[Picture]) -> torch.Tensor:
        """Every image token tells of the object it shows how many there are of its kind, its ninth and its colour."""
        truth = torch.from_numpy(patch_facts(pictures)).to(tokens.device)
        return _fact_loss(self.patches(tokens.float()), truth)

    def word_loss(self, hidden: tuple[torch.Tensor, ...], batch: PackBatch) -> torch.Tensor:
        """The same at the word that names a category in a question and where the answer begins, in all upper layers."""
        truth = batch.facts.to(hidden[0].device)
        named = (truth >= 0).any(-1)
        losses = [
            _fact_loss(head(nn.functional.layer_norm(hidden[layer][named].float(), (WIDTH,))), truth[named])
            for layer, head in zip(PROBED_LAYERS, self.words, strict=True)
        ]
        return WORD_WEIGHT * torch.stack(losses).mean()


def _fact_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """`logits` [..., sum(SIZES)], `truth` [..., 3]. Sum over the facts of the mean over where each is known."""
    parts = torch.split(logits.flatten(0, -2), list(SIZES), -1)
    columns = truth.flatten(0, -2).unbind(-1)
    sums = [
        nn.functional.cross_entropy(part, column, ignore_index=-1, reduction="sum") / (column >= 0).sum().clamp_min(1)
        for part, column in zip(parts, columns, strict=True)
    ]
    return torch.stack(sums).sum()


def patch_facts(pictures: list[Picture]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """[pictures, 64, 3]: the facts of the object that each patch shows, -1 where it shows none."""
    truth = np.full((len(pictures), IMAGE_TOKENS, len(SIZES)), -1, np.int64)
    for row, picture in enumerate(pictures):
        blocks = picture.owners.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(IMAGE_TOKENS, -1)
        covered = np.stack([(blocks == thing.index).mean(1) for thing in picture.things])
        most = covered.argmax(0)
        facts = np.array([(known.count, known.cell, known.colour) for known in facts_of_things(picture)])
        shown = covered.max(0) >= LEAST_COVERED
        truth[row, shown] = facts[most[shown]]
    return truth


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
def read_places(joint: Joint, packer: Packer, album: Album, count: int = 48) -> None:
    """The first head, which finds the patches that are like the word asked for, also copies their waves to that word.

    Of what a head copies, the parts that do least make room; the waves go where texts put least.
    """
    model, device = joint.language.model.model, joint.vision.empty.device
    count = min(count, len(album))
    pictures = [album.picture(index) for index in range(count)]
    tokens = joint.vision.image_tokens(normalised(np.array(album.pixels[:count])).to(device))
    waves = place_waves().to(device)
    attention, norm = model.layers[0].self_attn, model.layers[0].input_layernorm
    words = model.embed_tokens.weight
    inputs = norm(torch.cat([tokens.flatten(0, 1), words])).double()
    targets = torch.cat([waves.repeat(count, 1), torch.zeros(len(words), waves.shape[1], device=device)]).double()
    reading = regression(inputs, targets).T.float()

    hidden: list[torch.Tensor] = []

    def remember(states: tuple[torch.Tensor, ...], batch: PackBatch) -> torch.Tensor:
        hidden.append(states[2][(batch.facts >= 0).any(-1).to(device)].float())
        return states[2].sum() * 0

    joint.language(packer.batch(np.random.default_rng(0), pictures, [True] * count), tokens.flatten(0, 1), remember)
    quiet = torch.linalg.eigh(hidden[0].T.cov().double()).eigenvectors[:, : waves.shape[1]].float()
    copied = attention.v_proj(norm(tokens.flatten(0, 1)))[:, : attention.head_dim]
    idle = (copied.std(0) * attention.o_proj.weight[:, : attention.head_dim].norm(dim=0)).argsort()[: waves.shape[1]]
    attention.v_proj.weight[idle] = reading
    attention.o_proj.weight[:, idle] = COPIED_HEIGHT * hidden[0].std(0).mean() * quiet


def train_details(
    work: Path,
    joint: Joint,
    album: Album,
    tuning: Album,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    size: int,
    seed: int = 29,
) -> Joint:
    device = pick_device()
    torch.manual_seed(seed)
    stage = Details(joint).to(device)
    packer = Packer(tokenizer, MIX)
    if not (work / "details.pt").exists():
        write_places(joint.vision.eval(), album)
        read_places(joint.eval(), packer, album)
    joint.language.head_noise.share = 0.25
    joint.language.repetition_weight = REPETITION_WEIGHT
    joint.language.detail_weight = DETAIL_WEIGHT
    trainer = Trainer(
        "details",
        work,
        stage,
        steps,
        seed=seed,
        muon_rate=1e-3,
        adam_rate=1e-3,
        slow={"joint.vision.": VISION_RATE},
        warmup=50,
    )
    for step in trainer:
        loss, tokens, batch, figures = seen_and_said(
            joint, packer, trainer.random(step), album, size, device, STRAY_WEIGHT, stage.word_loss
        )
        seen = stage.patch_loss(tokens, batch.pictures)
        place = stage.place_loss(tokens)
        figures |= {"seen": seen.item(), "place": place.item()}
        if step % 250 == 249:
            found = details(Asker(assembled(joint, tokenizer), tokenizer), tuning, 60)
            joint.to(device)
            figures |= {kind: asked["accuracy"] for kind, asked in found.items()}
        trainer.update(loss + PATCH_WEIGHT * seen + CELL_WEIGHT * place, figures)
    return joint
