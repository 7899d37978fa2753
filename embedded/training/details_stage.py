"""Details stage: the language model learns number, position and colour, beside the earlier mixture of texts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.data.attributes import ATTRIBUTE_SIZES
from embedded.data.scene_dataset import SceneDataset
from embedded.data.text_templates import QuestionMix
from embedded.training.analytic_init import write_object_readout
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.finish_stage import REPETITION_WEIGHT, STRAY_WEIGHT, FinishModel
from embedded.training.joint_stage import VISION_RATE, JointModel, assemble_llava, joint_loss
from embedded.training.language_stage import PROBED_LAYERS
from embedded.training.model_config import WIDTH
from embedded.training.object_stage import ObjectHeads, attribute_loss
from embedded.training.packing import PackedBatch, Packer, TextMix
from embedded.training.trainer import SHARDS, Trainer, select_device

MIX = TextMix(
    caption_rate=1.0,
    second_caption_rate=0.3,
    listing_rate=0.3,
    detail_rate=0.3,
    described_caption_rate=0.15,
    invention_rate=0.3,
    omission_rate=0.1,
    presence_mix=QuestionMix(likely=0.05, frequent=0.0, beyond_rate=0.3),
    max_attribute_questions=8,
    num_presence_questions=5,
    max_length=352,
)
DETAIL_WEIGHT, WORD_WEIGHT, OBJECT_LOSS_WEIGHT, POSITION_LOSS_WEIGHT = 3.0, 1.0, 0.3, 0.3


class DetailsModel(FinishModel):
    """The joint model with training-only heads that learn attributes from image tokens and from words."""

    def __init__(self, joint: JointModel, object_heads: ObjectHeads) -> None:
        super().__init__(joint)
        self.objects = object_heads
        self.word_heads = nn.ModuleList(nn.Linear(WIDTH, sum(ATTRIBUTE_SIZES)) for _ in PROBED_LAYERS)

    def word_loss(self, hidden: tuple[torch.Tensor, ...], batch: PackedBatch) -> torch.Tensor:
        """Learn number, grid cell and colour at the word of the named category and where the answer begins.

        Args:
            hidden: Hidden states after each layer, [rows, length, WIDTH].
            batch: The packs. Its `attributes` are [rows, length, 3], -1 for unknown values.

        Returns:
            The weighted loss, a scalar [].
        """
        targets = batch.attributes.to(hidden[0].device)
        is_named = (targets >= 0).any(-1)
        losses = [
            attribute_loss(head(nn.functional.layer_norm(hidden[layer][is_named].float(), (WIDTH,))), targets[is_named])
            for layer, head in zip(PROBED_LAYERS, self.word_heads, strict=True)
        ]
        return WORD_WEIGHT * torch.stack(losses).mean()


def train_details(
    work_dir: Path,
    joint: JointModel,
    object_heads: ObjectHeads,
    dataset: SceneDataset,
    tokenizer: PreTrainedTokenizerFast,
    evaluate: Callable[[LlavaForConditionalGeneration], dict[str, float]],
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation = FULL_AUGMENTATION,
    seed: int = 29,
) -> JointModel:
    """Train the joint model on questions about details, from its last checkpoint if there is one.

    Args:
        work_dir: Folder of checkpoints and logs.
        joint: The model of the finish stage.
        object_heads: The heads of the objects stage.
        dataset: Scenes to train on.
        tokenizer: Tokenizer of the language model.
        evaluate: Measures a model for the log, every 250 steps.
        steps: Steps of the stage.
        batch_size: Scenes per step.
        augmentation: Augmentation of images and texts.
        seed: Seed of the stage.

    Returns:
        The trained model.
    """
    device = select_device()
    torch.manual_seed(seed)
    model = DetailsModel(joint, object_heads).to(device)
    packer = Packer(tokenizer, augmentation.adapt_mix(MIX))
    if not (work_dir / "details.pt").exists():
        write_object_readout(joint.eval(), object_heads, packer, dataset)
    joint.language.head_noise.rate = 0.25
    joint.language.repetition_weight = REPETITION_WEIGHT
    joint.language.detail_weight = DETAIL_WEIGHT
    trainer = Trainer(
        "details",
        work_dir,
        model,
        steps,
        seed=seed,
        muon_rate=1e-3,
        adam_rate=1e-3,
        slow={"joint.vision.": VISION_RATE},
        warmup=50,
        shards=SHARDS,
    )

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        loss, tokens, batch, figures = joint_loss(
            *(joint, packer, rng, dataset, batch_size // SHARDS, device, STRAY_WEIGHT, model.word_loss),
            masked_fraction=augmentation.masked_fraction,
        )
        object_loss = object_heads.loss(tokens, batch)
        position_loss = model.position_loss(tokens)
        figures |= {"objects": object_loss.item(), "position": position_loss.item()}
        return loss + OBJECT_LOSS_WEIGHT * object_loss + POSITION_LOSS_WEIGHT * position_loss, figures

    for step in trainer:
        figures = {}
        if step % 250 == 249:
            figures = evaluate(assemble_llava(joint, tokenizer))
            joint.to(device)
        trainer.update(compute_loss, figures)
    return joint
