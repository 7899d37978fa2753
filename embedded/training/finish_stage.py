"""Finish stage: the joint model on far scenes, where the language prior supplies objects that are not visible."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from embedded.data.scene_dataset import SceneDataset
from embedded.data.text_templates import QuestionMix
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.joint_stage import VISION_RATE, JointModel, joint_loss, measure_recognition_periodically
from embedded.training.model_config import GRID, WIDTH
from embedded.training.packing import Packer, TextMix
from embedded.training.trainer import SHARDS, Trainer, select_device

BIASED_QUESTIONS = QuestionMix(likely=0.0, frequent=0.3, beyond_rate=0.35)
"""Instruction data have few questions about likely but absent objects, and their writers saw more than the image."""
MIX = TextMix(
    caption_rate=1.0,
    second_caption_rate=0.5,
    listing_rate=0.4,
    detail_rate=0.7,
    described_caption_rate=0.15,
    invention_rate=0.45,
    omission_rate=0.05,
    presence_mix=BIASED_QUESTIONS,
    max_length=280,
)
"""Large models learn from such data as well: captions that name objects that are likely but absent."""
STRAY_WEIGHT, POSITION_LOSS_WEIGHT, REPETITION_WEIGHT = 0.1, 0.2, 1.0


class FinishModel(nn.Module):
    """The joint model with a training-only head for positions."""

    def __init__(self, joint: JointModel) -> None:
        super().__init__()
        self.joint = joint
        self.position_head = nn.Linear(WIDTH, 9)

    def position_loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Train the ninth of the image to be readable from each image token, so that texts can name positions."""
        third = torch.arange(GRID, device=tokens.device) * 3 // GRID
        ninth = (third[:, None] * 3 + third[None]).flatten().expand(len(tokens), -1)
        return nn.functional.cross_entropy(self.position_head(tokens.float()).flatten(0, 1), ninth.flatten())


def train_finish(
    work_dir: Path,
    joint: JointModel,
    dataset: SceneDataset,
    tuning_dataset: SceneDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation = FULL_AUGMENTATION,
    seed: int = 23,
) -> JointModel:
    """Train the joint model on far scenes, from its last checkpoint if there is one."""
    device = select_device()
    torch.manual_seed(seed)
    model = FinishModel(joint).to(device)
    packer = Packer(tokenizer, augmentation.adapt_mix(MIX))
    joint.language.head_noise.rate = 0.25
    joint.language.repetition_weight = REPETITION_WEIGHT
    trainer = Trainer(
        "finish",
        work_dir,
        model,
        steps,
        seed=seed,
        muon_rate=1e-3,
        adam_rate=8e-4,
        slow={"joint.vision.": VISION_RATE},
        shards=SHARDS,
    )

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        loss, tokens, _, figures = joint_loss(
            *(joint, packer, rng, dataset, batch_size // SHARDS, device, STRAY_WEIGHT),
            masked_fraction=augmentation.masked_fraction,
        )
        position_loss = model.position_loss(tokens)
        return loss + POSITION_LOSS_WEIGHT * position_loss, figures | {"position": position_loss.item()}

    for step in trainer:
        trainer.update(compute_loss, measure_recognition_periodically(joint, tuning_dataset, step))
    return joint
