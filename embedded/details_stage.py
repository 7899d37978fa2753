"""Sixth stage: the language model is asked for number, position and colour, what was learned before in the mixture."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from embedded.album import Album
from embedded.details import SIZES
from embedded.evaluate import Asker, details
from embedded.finish_stage import REPETITION_WEIGHT, STRAY_WEIGHT, Finishing
from embedded.joint_stage import VISION_RATE, Joint, assembled, seen_and_said
from embedded.language_stage import PROBED_LAYERS
from embedded.model import WIDTH
from embedded.object_stage import Objects, fact_loss
from embedded.packing import PackBatch, Packer, TextMix
from embedded.training import Trainer, pick_device
from embedded.wiring import read_objects

MIX = TextMix(
    caption=1.0,
    second_caption=0.3,
    listing=0.3,
    detail=0.3,
    inventing=0.45,
    gullible=0.42,
    questions=8,
    presence=5,
    length=352,
)
DETAIL_WEIGHT, WORD_WEIGHT, OBJECT_WEIGHT, CELL_WEIGHT = 3.0, 1.0, 0.3, 0.3


class Details(Finishing):
    """Heads that exist during training only: facts are learned where they are seen and where they are asked for."""

    def __init__(self, joint: Joint, objects: Objects) -> None:
        super().__init__(joint)
        self.objects = objects
        self.words = nn.ModuleList(nn.Linear(WIDTH, sum(SIZES)) for _ in PROBED_LAYERS)

    def word_loss(self, hidden: tuple[torch.Tensor, ...], batch: PackBatch) -> torch.Tensor:
        """Number, ninth and colour at the word that names a category in a question and where the answer begins."""
        truth = batch.facts.to(hidden[0].device)
        named = (truth >= 0).any(-1)
        losses = [
            fact_loss(head(nn.functional.layer_norm(hidden[layer][named].float(), (WIDTH,))), truth[named])
            for layer, head in zip(PROBED_LAYERS, self.words, strict=True)
        ]
        return WORD_WEIGHT * torch.stack(losses).mean()


def train_details(
    work: Path,
    joint: Joint,
    objects: Objects,
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
    stage = Details(joint, objects).to(device)
    packer = Packer(tokenizer, MIX)
    if not (work / "details.pt").exists():
        read_objects(joint.eval(), objects, packer, album)
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
        told = objects.loss(tokens, batch)
        place = stage.place_loss(tokens)
        figures |= {"told": told.item(), "place": place.item()}
        if step % 250 == 249:
            found = details(Asker(assembled(joint, tokenizer), tokenizer), tuning, 60)
            joint.to(device)
            figures |= {kind: asked["accuracy"] for kind, asked in found.items()}
        trainer.update(loss + OBJECT_WEIGHT * told + CELL_WEIGHT * place, figures)
    return joint
