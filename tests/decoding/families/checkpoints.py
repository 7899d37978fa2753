"""Tiny random checkpoints of every family, in the layout of published ones."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.decoding.families.tokenizer import build_tokenizer

WIDTH, LAYERS, HEADS = 32, 4, 4
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
VISION = {  # of a vision tower that takes images of 4 x 4 patches
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SQUARE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class CheckpointParts:
    """Contents of a checkpoint. `config` lacks the vocabulary size and the end token of the text model."""

    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    image_processor: Any  # the image processor
    processor: str  # class name, as the checkpoint has it
    settings: dict[str, Any] = field(default_factory=dict)  # of the processor
    chat_template: str | None = None


def build_chat_template(user: str, assistant: str, end: str, image_token: str, start: str = "") -> str:
    """Build a chat template in the common form: roles, parts, and the model's turn."""
    return (
        f"{start}{{% for message in messages %}}"
        f"{{{{ '{user}' if message.role == 'user' else '{assistant}' if message.role == 'assistant' else '' }}}}"
        "{% for part in message.content %}"
        f"{{% if part.type == 'image' %}}{image_token}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
        f"{{% endfor %}}{end}{{% endfor %}}{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


def llava() -> CheckpointParts:
    return CheckpointParts(
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "text_config": {"model_type": "llama", **TEXT},
        },
        build_tokenizer(["<image>"], bos="<s>"),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
        "LlavaProcessor",
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        build_chat_template("USER: ", "ASSISTANT:", " ", "<image>\n"),
    )


def llava_next() -> CheckpointParts:
    """Use Mistral, all of whose layers have a window here that is narrower than an image."""
    grid = [[32, 64], [64, 32], [64, 64], [32, 96]]
    return CheckpointParts(
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "text_config": {"model_type": "mistral", "sliding_window": 24, **TEXT},
            "image_grid_pinpoints": grid,
        },
        build_tokenizer(["<image>"], bos="<s>"),
        LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=grid),
        "LlavaNextProcessor",
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        build_chat_template("[INST] ", "", " [/INST]", "<image>\n"),
    )


def qwen(name: str, vision: dict[str, Any], text: dict[str, Any]) -> CheckpointParts:
    return CheckpointParts(
        {
            "vision_config": {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, **vision},
            "text_config": {
                **{key: value for key, value in TEXT.items() if key != "head_dim"},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
                **text,
            },
        },
        build_tokenizer(
            ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"], eos="<|im_end|>"
        ),
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}),
        name,
        chat_template=build_chat_template(
            "<|im_start|>user\n",
            "<|im_start|>assistant\n",
            "<|im_end|>\n",
            "<|vision_start|><|image_pad|><|vision_end|>",
        ),
    )


def qwen2_vl() -> CheckpointParts:
    vision = {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    windows = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}
    return qwen("Qwen2VLProcessor", vision, windows)


def qwen2_5_vl() -> CheckpointParts:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": WIDTH,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return qwen("Qwen2_5_VLProcessor", vision, {})


def qwen3_vl() -> CheckpointParts:
    """Use a tower whose first two layers also feed the first two layers of the language model."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return qwen("Qwen3VLProcessor", vision, {"head_dim": 8, "rope_parameters": rope})


def instructblip() -> CheckpointParts:
    vision = {key: value for key, value in VISION.items() if key != "num_channels"}
    return CheckpointParts(
        {
            "vision_config": vision,
            "qformer_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "encoder_hidden_size": 16,
                "max_position_embeddings": 64,
                "vocab_size": 320,
            },
            "text_config": {"model_type": "llama", **TEXT},
            "num_query_tokens": 6,
        },
        build_tokenizer(["<image>"], bos="<s>"),
        BlipImageProcessorPil(size=SQUARE),
        "InstructBlipProcessor",
        {"qformer_tokenizer": build_tokenizer([], bos="[CLS]"), "num_query_tokens": 6},
    )


def build_tiled(model: str, image_processor: Any) -> CheckpointParts:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    return CheckpointParts(
        {
            "vision_config": {"model_type": f"{model}_vision", **VISION},
            "text_config": {"model_type": "llama", **TEXT},
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        build_tokenizer(
            ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *tiles],
            eos="<|im_end|>",
        ),
        image_processor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        "Idefics3Processor" if model == "idefics3" else "SmolVLMProcessor",
        {"image_seq_len": 4},
        build_chat_template("User:", "Assistant:", "<end_of_utterance>\n", "<image>", start="<|im_start|>"),
    )


def idefics3() -> CheckpointParts:
    return build_tiled("idefics3", Idefics3ImageProcessorPil)


def smolvlm() -> CheckpointParts:
    return build_tiled("smolvlm", SmolVLMImageProcessorPil)


def gemma3() -> CheckpointParts:
    """Use windows narrower than the prompt in every second layer."""
    local = {"sliding_window": 12, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return CheckpointParts(
        {
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            "text_config": {"model_type": "gemma3_text", **TEXT, **local},
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": False,
        },
        build_tokenizer(["<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", named=named),
        Gemma3ImageProcessorPil(size=SQUARE),
        "Gemma3Processor",
        {"image_seq_length": 4},
        build_chat_template(
            "<start_of_turn>user\n",
            "<start_of_turn>model\n",
            "<end_of_turn>\n",
            "<start_of_image>",
            start="{{ bos_token }}",
        ),
    )


def internvl() -> CheckpointParts:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return CheckpointParts(
        {
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            "text_config": {"model_type": "qwen2", **TEXT},
            "image_seq_length": 4,
            "tie_word_embeddings": False,
        },
        build_tokenizer(["<|im_start|>"], eos="<|im_end|>", named=named),
        GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
        "InternVLProcessor",
        {"image_seq_length": 4},
        build_chat_template("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<IMG_CONTEXT>\n"),
    )


CHECKPOINTS: dict[str, Callable[[], CheckpointParts]] = {
    parts.__name__: parts
    for parts in (
        llava,
        llava_next,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        instructblip,
        idefics3,
        smolvlm,
        gemma3,
        internvl,
    )
}
PLACEHOLDERS = {  # config field -> token
    "image_token_id": ("<image>", "<|image_pad|>", "<image_soft_token>", "<IMG_CONTEXT>"),
    "video_token_id": ("<|video_pad|>",),
    "vision_start_token_id": ("<|vision_start|>",),
    "vision_end_token_id": ("<|vision_end|>",),
    "boi_token_index": ("<start_of_image>",),
    "eoi_token_index": ("<end_of_image>",),
}


def write_checkpoint(name: str, folder: Path, times: int = 1) -> Path:
    """Write the checkpoint of family `name` to `folder`, with a language model `times` as wide."""
    torch.manual_seed(0)
    parts = widen(CHECKPOINTS[name](), times)
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
