"""Fourth stage: the joined model on scenes seen from afar, where the language prior has to fill what cannot be seen."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from embedded.album import Album
from embedded.joint_stage import VISION_RATE, Joint, recognised, seen_and_said
from embedded.model import GRID, WIDTH
from embedded.packing import Packer, TextMix
from embedded.training import Trainer, pick_device

MIX = TextMix(caption=1.0, second_caption=0.6, listing=0.4, detail=0.7, inventing=0.45, gullible=0.3)
"""What large models learn from as well: captions and answers that name what would be likely there, but is not."""
STRAY_WEIGHT, CELL_WEIGHT, REPETITION_WEIGHT = 0.1, 0.2, 1.0


class Finishing(nn.Module):
    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint = joint
        self.cell = nn.Linear(WIDTH, 9)

    def place_loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image tokens should tell in which ninth of the picture they lie, so that positions can be talked about."""
        third = torch.arange(GRID, device=tokens.device) * 3 // GRID
        ninth = (third[:, None] * 3 + third[None]).flatten().expand(len(tokens), -1)
        return nn.functional.cross_entropy(self.cell(tokens.float()).flatten(0, 1), ninth.flatten())


def train_finish(
    work: Path,
    joint: Joint,
    album: Album,
    tuning: Album,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    size: int,
    seed: int = 23,
) -> Joint:
    device = pick_device()
    torch.manual_seed(seed)
    finishing = Finishing(joint).to(device)
    packer = Packer(tokenizer, MIX)
    joint.language.head_noise.share = 0.25
    joint.language.repetition_weight = REPETITION_WEIGHT
    trainer = Trainer(
        "finish",
        work,
        finishing,
        steps,
        seed=seed,
        muon_rate=1e-3,
        adam_rate=8e-4,
        slow={"joint.vision.": VISION_RATE},
    )
    for step in trainer:
        loss, tokens, _, figures = seen_and_said(joint, packer, trainer.random(step), album, size, device, STRAY_WEIGHT)
        place = finishing.place_loss(tokens)
        figures["place"] = place.item()
        trainer.update(loss + CELL_WEIGHT * place, figures | recognised(joint, tuning, step))
    return joint
