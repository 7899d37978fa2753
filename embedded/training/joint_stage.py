"""Joint stage: tower, projector and language model are trained together on rendered scenes and texts about them."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.data.scene_dataset import SceneDataset
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.batch import SceneBatch, sample_batch
from embedded.training.language_stage import AuxiliaryLoss, LanguageModel
from embedded.training.model_config import build_language_config, build_llava
from embedded.training.packing import Packer, TextMix
from embedded.training.trainer import SHARDS, Trainer, autocast, select_device
from embedded.training.vision_stage import (
    LANGUAGE_SCALE,
    VisionModel,
    copy_weights,
    measure_recognition,
    rescale_tokens,
)

DENSE_WEIGHT = 0.3
DENSE_SCENES = 3
"""Scenes for the patch objective per scene with texts: the tower still has the most to learn."""
VISION_RATE = 0.5
MIX = TextMix(caption_rate=0.85, second_caption_rate=0.25, listing_rate=0.3, detail_rate=0.6)


class JointModel(nn.Module):
    """The vision model and the language model."""

    def __init__(self, vision: VisionModel, language: LanguageModel) -> None:
        super().__init__()
        self.vision, self.language = vision, language


def build_joint_model(tokenizer: PreTrainedTokenizerFast) -> JointModel:
    """Build a joint model with random weights, in the language model's scale of image tokens."""
    model = LlamaForCausalLM._from_config(build_language_config(len(tokenizer)), attn_implementation="eager")
    return JointModel(VisionModel(LANGUAGE_SCALE), LanguageModel(model, Packer(tokenizer, MIX)))


def split_llava(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> JointModel:
    """Take the parts out of a trained LLaVA model, with new training-only heads: the inverse of `assemble_llava`."""
    joint = build_joint_model(tokenizer)
    joint.vision.tower.load_state_dict(model.model.vision_tower.state_dict())
    joint.vision.projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    joint.language.model.model.load_state_dict(model.model.language_model.state_dict())
    return joint


def join_models(vision: VisionModel, language: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> JointModel:
    """Join the models of the first two stages."""
    joint = build_joint_model(tokenizer)
    joint.vision.load_state_dict(vision.state_dict())
    joint.vision.scale = vision.scale
    rescale_tokens(joint.vision, LANGUAGE_SCALE)
    joint.language.load_state_dict(language.state_dict())
    return joint


def joint_loss(
    joint: JointModel,
    packer: Packer,
    rng: np.random.Generator,
    dataset: SceneDataset,
    batch_size: int,
    device: torch.device,
    stray_weight: float = 2.0,
    auxiliary_loss: AuxiliaryLoss | None = None,
    *,
    masked_fraction: float,
) -> tuple[torch.Tensor, torch.Tensor, SceneBatch, dict[str, float]]:
    """Compute the loss of the texts about `batch_size` scenes, and of the patches of `DENSE_SCENES` times as many.

    Args:
        joint: The model.
        packer: Builds the texts.
        rng: Source of all random choices.
        dataset: The scenes.
        batch_size: Number of scenes with texts.
        device: Device of the model.
        stray_weight: Weight of the penalty on image tokens outside the class vectors.
        auxiliary_loss: Further loss on the hidden states.
        masked_fraction: Fraction of images of which a part is black.

    Returns:
        The loss, all image tokens [DENSE_SCENES * batch_size, 64, 256], their scenes, and figures for the log.
    """
    batch = sample_batch(rng, dataset, DENSE_SCENES * batch_size, masked_fraction=masked_fraction)
    scenes = batch.scenes[:batch_size]
    with_image = [bool(rng.random() >= packer.mix.without_image_rate) for _ in scenes]
    with autocast(device):
        tokens = joint.vision.compute_image_tokens(batch.pixels.to(device))
    dense = joint.vision.loss(tokens, batch.present.to(device), stray_weight)
    shown = tokens[:batch_size][torch.tensor(with_image, device=device)].flatten(0, 1)
    loss, figures = joint.language(packer.batch(rng, scenes, with_image), shown, auxiliary_loss)
    return loss + DENSE_WEIGHT * dense, tokens, batch, figures | {"dense": dense.item()}


def measure_recognition_periodically(joint: JointModel, tuning_dataset: SceneDataset, step: int) -> dict[str, float]:
    """Measure the tower on tuning scenes, every 400 steps."""
    if step % 400 != 399:
        return {}
    joint.vision.eval()
    figures = measure_recognition(joint.vision, tuning_dataset)
    joint.vision.train()
    return figures


def train_joint(
    work_dir: Path,
    joint: JointModel,
    dataset: SceneDataset,
    tuning_dataset: SceneDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation = FULL_AUGMENTATION,
    seed: int = 17,
) -> JointModel:
    """Train the joint model, from its last checkpoint if there is one."""
    device = select_device()
    joint.to(device)
    packer = Packer(tokenizer, augmentation.adapt_mix(MIX))
    trainer = Trainer(
        "joint",
        work_dir,
        joint,
        steps,
        seed=seed,
        muon_rate=1.2e-3,
        adam_rate=1e-3,
        slow={"vision.": VISION_RATE},
        shards=SHARDS,
    )
    joint.language.head_noise.rate = 0.25

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        loss, _, _, figures = joint_loss(
            *(joint, packer, rng, dataset, batch_size // SHARDS, device), masked_fraction=augmentation.masked_fraction
        )
        return loss, figures

    for step in trainer:
        trainer.update(compute_loss, measure_recognition_periodically(joint, tuning_dataset, step))
    return joint


def assemble_llava(joint: JointModel, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Copy the parts into one LLaVA model on the CPU."""
    model = build_llava(tokenizer)
    copy_weights(joint.vision.cpu(), model.model.vision_tower, model.model.multi_modal_projector)
    model.model.language_model.load_state_dict(joint.language.model.model.state_dict())
    model.lm_head.load_state_dict(joint.language.model.lm_head.state_dict())
    model.tie_weights()
    return model.eval()
