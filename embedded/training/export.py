"""Export of the trained model in the format that transformers and vLLM load."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from embedded.data.renderer import SIZE
from embedded.training.model_config import PATCH, PIXEL_MEAN, PIXEL_STD


def export_model(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in float16 with its processor; `model` itself stays in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    )
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    halved = LlavaForConditionalGeneration(model.config).half()
    halved.load_state_dict({name: value.half() for name, value in model.state_dict().items()})
    halved.generation_config = model.generation_config
    halved.config.dtype = torch.float16
    halved.save_pretrained(folder)
    rename_tower_weights(folder / "model.safetensors")
    images = CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)


def rename_tower_weights(file: Path) -> None:
    """Rename the tower's weights as in checkpoints on the hub: transformers reads both forms, vLLM only this one."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {name.replace(old, new) if new not in name else name: value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
