"""Tiny random checkpoints of every family, in the layout of published ones."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.decoding.families.grid_families import GRID_FAMILIES
from tests.decoding.families.parts import WIDTH, CheckpointParts
from tests.decoding.families.tile_families import TILE_FAMILIES

CHECKPOINTS: dict[str, Callable[[], CheckpointParts]] = {
    parts.__name__: parts for parts in (*TILE_FAMILIES, *GRID_FAMILIES)
}
PLACEHOLDERS = {  # config field -> token
    "image_token_id": (
        "<image>",
        "<|image_pad|>",
        "<image_soft_token>",
        "<IMG_CONTEXT>",
        "<|IMG_PATCH|>",
        "<|image|>",
        "<image_placeholder>",
        "<|IMAGE_PLACEHOLDER|>",
    ),
    "video_token_id": ("<|video_pad|>", "<|video|>"),
    "vision_start_token_id": ("<|vision_start|>",),
    "vision_end_token_id": ("<|vision_end|>",),
    "boi_token_index": ("<start_of_image>",),
    "eoi_token_index": ("<end_of_image>",),
    "image_start_token_id": ("<|begin_of_image|>",),
    "image_end_token_id": ("<|end_of_image|>",),
    "video_start_token_id": ("<|begin_of_video|>",),
    "video_end_token_id": ("<|end_of_video|>",),
}


def write_checkpoint(name: str, folder: Path, times: int = 1) -> Path:
    """Write the checkpoint of family `name` to `folder`, with a language model `times` as wide."""
    parts = widen(CHECKPOINTS[name](), times)
    torch.manual_seed(parts.seed)
    network = AutoModelForImageTextToText.from_config(build_config(name, parts))
    draw_weights(network)
    with torch.no_grad():  # the reference would take an image token in an answer for an image
        network.get_output_embeddings().weight[[*parts.tokenizer.added_tokens_decoder]] = 0
    network.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    parts.image_processor.save_pretrained(folder)
    settings = dict(parts.settings)
    if qformer := settings.pop("qformer_tokenizer", None):
        qformer.save_pretrained(folder / "qformer_tokenizer")
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": parts.processor, **settings}))
    if parts.chat_template:
        (folder / "chat_template.jinja").write_text(parts.chat_template)
    return folder


def write_for_vllm(folder: Path, name: str) -> Path:
    """Write the checkpoint for vLLM, whose kernels have no heads smaller than 32."""
    write_checkpoint(name, folder, times=4)
    weights = load_file(folder / "model.safetensors")
    if "vision_tower.embeddings.class_embedding" in weights:  # hub checkpoints have CLIP's weights one module deeper
        deeper = ("vision_tower.", "vision_tower.vision_model.")
        named = {key.replace(*deeper) if key.startswith(deeper[0]) else key: value for key, value in weights.items()}
        save_file(named, folder / "model.safetensors", {"format": "pt"})
    return folder


def widen(parts: CheckpointParts, times: int) -> CheckpointParts:
    if times == 1:
        return parts
    if "<start_of_image>" in parts.tokenizer.get_vocab():  # vLLM requires Gemma's tokens for line breaks
        parts.tokenizer.add_tokens(["\n" * number for number in range(1, 5)])
    text, vision = dict(parts.config["text_config"]), dict(parts.config["vision_config"])
    text |= {key: text[key] * times for key in ("hidden_size", "head_dim") if key in text}
    vision |= {key: WIDTH * times for key in ("hidden_size", "out_hidden_size") if vision.get(key) == WIDTH}
    if sections := text.get("rope_parameters", {}).get("mrope_section"):
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [times * one for one in sections]}
    if text.get("use_sliding_window"):  # some layers only, which vLLM rejects
        text["use_sliding_window"] = False
    return replace(parts, config=parts.config | {"text_config": text, "vision_config": vision})


def build_config(name: str, parts: CheckpointParts) -> Any:
    ids = parts.tokenizer.get_vocab()
    text = {**parts.config["text_config"], "vocab_size": len(ids), "eos_token_id": parts.tokenizer.eos_token_id}
    known = transformers.CONFIG_MAPPING[name]
    tokens = {field: ids[token] for field, tokens in PLACEHOLDERS.items() for token in tokens if token in ids}
    field_names = {"image_token_id": "image_token_index"} if "image_token_index" in known.__annotations__ else {}
    tokens = {field_names.get(field, field): value for field, value in tokens.items()}
    return known(**{**parts.config, "text_config": text, **tokens})


@torch.no_grad()
def draw_weights(network: nn.Module) -> None:
    """Draw weights that keep every layer's output large, and the gaps between logits larger than rounding."""
    for path, parameter in network.named_parameters():
        if parameter.dim() > 1:
            gain = 4.0 if "lm_head" in path else 1.5
            parameter.normal_(std=gain / math.sqrt(parameter[0].numel()))
        elif path.endswith("bias"):
            parameter.normal_(std=0.1)
