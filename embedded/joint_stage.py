"""Third stage: tower, projector and language model together, on drawn pictures and all that is said about them."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.album import Album
from embedded.batch import Batch, sample_batch
from embedded.language_stage import Aid, Language
from embedded.model import language_config, new_model
from embedded.packing import Packer, TextMix
from embedded.training import Trainer, half_precision, pick_device
from embedded.vision_stage import READING, Vision, copy_weights, recognition, rescale

DENSE_WEIGHT = 0.3
DENSE_PICTURES = 3
"""Pictures drawn for the dense objective, per picture that is also talked about: the tower still has most to learn."""
VISION_RATE = 0.5
MIX = TextMix(caption=0.85, second_caption=0.25, listing=0.3, detail=0.6)


class Joint(nn.Module):
    def __init__(self, vision: Vision, language: Language) -> None:
        super().__init__()
        self.vision, self.language = vision, language


def new_joint(tokenizer: PreTrainedTokenizerFast) -> Joint:
    model = LlamaForCausalLM._from_config(language_config(len(tokenizer)), attn_implementation="eager")
    return Joint(Vision(READING), Language(model, Packer(tokenizer, MIX)))


def separated(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> Joint:
    """The parts of a finished model, to go on training: the inverse of `assembled`, with new training aids."""
    joint = new_joint(tokenizer)
    joint.vision.tower.load_state_dict(model.model.vision_tower.state_dict())
    joint.vision.projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    joint.language.model.model.load_state_dict(model.model.language_model.state_dict())
    return joint


def join(vision: Vision, language: Language, tokenizer: PreTrainedTokenizerFast) -> Joint:
    joint = new_joint(tokenizer)
    joint.vision.load_state_dict(vision.state_dict())
    joint.vision.scale = vision.scale
    rescale(joint.vision, READING)
    joint.language.load_state_dict(language.state_dict())
    return joint


def seen_and_said(
    joint: Joint,
    packer: Packer,
    random: np.random.Generator,
    album: Album,
    size: int,
    device: torch.device,
    stray_weight: float = 2.0,
    aid: Aid | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Batch, dict[str, float]]:
    """One batch: the loss of what is said about `size` pictures and of what the tower sees in more of them.

    Also returns all image tokens, [DENSE_PICTURES * size, 64, 256], their pictures, and the figures to watch.
    """
    batch = sample_batch(random, album, DENSE_PICTURES * size)
    pictures = batch.pictures[:size]
    with_image = [bool(random.random() >= packer.mix.without_image) for _ in pictures]
    with half_precision(device):
        tokens = joint.vision.image_tokens(batch.pixels.to(device))
    dense = joint.vision.loss(tokens, batch.present.to(device), stray_weight)
    shown = tokens[:size][torch.tensor(with_image, device=device)].flatten(0, 1)
    loss, figures = joint.language(packer.batch(random, pictures, with_image), shown, aid)
    return loss + DENSE_WEIGHT * dense, tokens, batch, figures | {"dense": dense.item()}


def recognised(joint: Joint, tuning: Album, step: int) -> dict[str, float]:
    """What the tower finds in pictures that it does not learn from; looked at every 400 steps."""
    if step % 400 != 399:
        return {}
    joint.vision.eval()
    figures = recognition(joint.vision, tuning)
    joint.vision.train()
    return figures


def train_joint(
    work: Path,
    joint: Joint,
    album: Album,
    tuning: Album,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    size: int,
    seed: int = 17,
) -> Joint:
    device = pick_device()
    joint.to(device)
    packer = Packer(tokenizer, MIX)
    trainer = Trainer(
        "joint", work, joint, steps, seed=seed, muon_rate=1.2e-3, adam_rate=1e-3, slow={"vision.": VISION_RATE}
    )
    joint.language.head_noise.share = 0.25
    for step in trainer:
        loss, _, _, figures = seen_and_said(joint, packer, trainer.random(step), album, size, device)
        trainer.update(loss, figures | recognised(joint, tuning, step))
    return joint


def assembled(joint: Joint, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The parts as one LLaVA model, on the CPU, ready to ship."""
    model = new_model(tokenizer)
    copy_weights(joint.vision.cpu(), model.model.vision_tower, model.model.multi_modal_projector)
    model.model.language_model.load_state_dict(joint.language.model.model.state_dict())
    model.lm_head.load_state_dict(joint.language.model.lm_head.state_dict())
    model.tie_weights()
    return model.eval()
