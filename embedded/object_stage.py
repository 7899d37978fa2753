"""Fifth stage: the tower, so far told which categories a patch shows, learns to tell one object from the next."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from embedded.album import Album
from embedded.batch import Batch, middle_targets, normalised, sample_batch
from embedded.categories import INDEX, NAMES
from embedded.details import MOST_COUNTED, SIZES, facts_of, facts_of_things
from embedded.model import GRID, IMAGE_TOKENS, PATCH, WIDTH
from embedded.picture import Picture
from embedded.training import Trainer, half_precision, pick_device
from embedded.vision_stage import Vision, recognition
from embedded.wiring import write_places

FACT_WEIGHT, MIDDLE_WEIGHT, SUM_WEIGHT, ASIDE_WEIGHT = 3.0, 3.0, 0.5, 0.04
LEAST_COVERED = 0.1
"""A patch tells the facts of the object that fills most of it, if that is at least this share."""


class Objects(nn.Module):
    """What image tokens should tell of the objects that they show, read by heads that exist during training only."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.vision = vision
        self.facts = nn.Linear(WIDTH, sum(SIZES))
        self.middles = nn.Linear(WIDTH, len(NAMES))
        nn.init.zeros_(self.middles.weight)  # a sum of 64 random numbers would upset the tower
        nn.init.zeros_(self.middles.bias)

    def aside(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean squared length of what tokens hold beside the class vectors.

        The language model normalises what it reads: if all else grows, it no longer sees which categories are there.
        """
        directions, _ = torch.linalg.qr(self.vision.class_directions.T)
        held = tokens.float() - self.vision.empty
        beside: torch.Tensor = held - held @ directions @ directions.T
        return beside.square().sum(-1).mean()

    def loss(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Which object has its middle here; how many there are of its kind, its ninth and its colour.

        Middles are learned by their squares, not as logits, so that their sum over the picture is a number of objects.
        """
        truth = torch.from_numpy(patch_facts(batch.pictures)).to(tokens.device)
        middles = torch.from_numpy(middle_targets(batch.pictures)).to(tokens.device)
        missed: torch.Tensor = self.middles(tokens.float()) - middles
        return (
            FACT_WEIGHT * fact_loss(self.facts(tokens.float()), truth)
            + MIDDLE_WEIGHT * missed.square().sum((1, 2)).mean()
            + SUM_WEIGHT * missed.sum(1).square().sum(1).mean()
        )


def fact_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
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


@torch.no_grad()
def counted(objects: Objects, album: Album, count: int = 300) -> dict[str, float]:
    """Share of right numbers, of categories that occur once and of those that occur more often: sums of middles."""
    count = min(count, len(album))
    tokens = objects.vision.image_tokens(normalised(np.array(album.pixels[:count])).to(objects.vision.empty.device))
    said = objects.middles(tokens).sum(1).round().clamp(1, MOST_COUNTED)
    right: dict[bool, list[bool]] = {False: [], True: []}
    for row in range(count):
        for name, known in facts_of(album.picture(row)).items():
            right[known.count > 1].append(int(said[row, INDEX[name]]) == known.count)
    return {"one": float(np.mean(right[False])), "more": float(np.mean(right[True]))}


def train_objects(
    work: Path, vision: Vision, album: Album, tuning: Album, *, steps: int, size: int, seed: int = 37
) -> Objects:
    device = pick_device()
    torch.manual_seed(seed)
    objects = Objects(vision).to(device)
    if not (work / "objects.pt").exists():
        write_places(vision.eval(), album)
    trainer = Trainer("objects", work, objects, steps, seed=seed, muon_rate=1e-3, adam_rate=1e-3, warmup=50)
    for step in trainer:
        batch = sample_batch(trainer.random(step), album, size)
        with half_precision(device):
            tokens = vision.image_tokens(batch.pixels.to(device))
        dense = vision.loss(tokens, batch.present.to(device), stray_weight=0.0)
        told, aside = objects.loss(tokens, batch), objects.aside(tokens)
        figures = {"dense": dense.item(), "told": told.item(), "aside": aside.item()}
        if step % 250 == 249:
            objects.eval()
            figures |= recognition(vision, tuning) | counted(objects, tuning)
            objects.train()
        trainer.update(dense + told + ASIDE_WEIGHT * aside, figures)
    return objects
