"""A tiny random checkpoint of every family, laid out as published ones are. A recipe is a family's share of it."""

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

from tests.decoding.families.words import words

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
SIGHT = {  # of a vision tower that takes pictures of 4 x 4 patches
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SQUARE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Recipe:
    """`config` holds what the config class is given beside the text model's vocabulary and end."""

    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    pictures: Any  # the image processor
    processor: str  # class name, as the checkpoint has it
    settings: dict[str, Any] = field(default_factory=dict)  # of the processor
    template: str | None = None


def template(user: str, assistant: str, end: str, picture: str, start: str = "") -> str:
    """A chat template in the common form: roles, parts, and the model's turn."""
    return (
        f"{start}{{% for message in messages %}}"
        f"{{{{ '{user}' if message.role == 'user' else '{assistant}' if message.role == 'assistant' else '' }}}}"
        "{% for part in message.content %}"
        f"{{% if part.type == 'image' %}}{picture}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
        f"{{% endfor %}}{end}{{% endfor %}}{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


def llava() -> Recipe:
    return Recipe(
        {"vision_config": {"model_type": "clip_vision_model", **SIGHT}, "text_config": {"model_type": "llama", **TEXT}},
        words(["<image>"], bos="<s>"),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
        "LlavaProcessor",
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        template("USER: ", "ASSISTANT:", " ", "<image>\n"),
    )


def llava_next() -> Recipe:
    """On Mistral, all of whose layers have a window here, narrower than a picture."""
    grid = [[32, 64], [64, 32], [64, 64], [32, 96]]
    return Recipe(
        {
            "vision_config": {"model_type": "clip_vision_model", **SIGHT},
            "text_config": {"model_type": "mistral", "sliding_window": 24, **TEXT},
            "image_grid_pinpoints": grid,
        },
        words(["<image>"], bos="<s>"),
        LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=grid),
        "LlavaNextProcessor",
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        template("[INST] ", "", " [/INST]", "<image>\n"),
    )


def qwen(name: str, sight: dict[str, Any], text: dict[str, Any]) -> Recipe:
    return Recipe(
        {
            "vision_config": {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, **sight},
            "text_config": {
                **{key: value for key, value in TEXT.items() if key != "head_dim"},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
                **text,
            },
        },
        words(
            ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"], eos="<|im_end|>"
        ),
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}),
        name,
        template=template(
            "<|im_start|>user\n",
            "<|im_start|>assistant\n",
            "<|im_end|>\n",
            "<|vision_start|><|image_pad|><|vision_end|>",
        ),
    )


def qwen2_vl() -> Recipe:
    sight = {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    windows = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}
    return qwen("Qwen2VLProcessor", sight, windows)


def qwen2_5_vl() -> Recipe:
    sight = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": WIDTH,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return qwen("Qwen2_5_VLProcessor", sight, {})


def qwen3_vl() -> Recipe:
    """Its first two layers are given the tower's own first two."""
    sight = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return qwen("Qwen3VLProcessor", sight, {"head_dim": 8, "rope_parameters": rope})


def instructblip() -> Recipe:
    sight = {key: value for key, value in SIGHT.items() if key != "num_channels"}
    return Recipe(
        {
            "vision_config": sight,
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
        words(["<image>"], bos="<s>"),
        BlipImageProcessorPil(size=SQUARE),
        "InstructBlipProcessor",
        {"qformer_tokenizer": words([], bos="[CLS]"), "num_query_tokens": 6},
    )


def tiled(model: str, pictures: Any) -> Recipe:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    return Recipe(
        {
            "vision_config": {"model_type": f"{model}_vision", **SIGHT},
            "text_config": {"model_type": "llama", **TEXT},
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        words(
            ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *tiles],
            eos="<|im_end|>",
        ),
        pictures(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        "Idefics3Processor" if model == "idefics3" else "SmolVLMProcessor",
        {"image_seq_len": 4},
        template("User:", "Assistant:", "<end_of_utterance>\n", "<image>", start="<|im_start|>"),
    )


def idefics3() -> Recipe:
    return tiled("idefics3", Idefics3ImageProcessorPil)


def smolvlm() -> Recipe:
    return tiled("smolvlm", SmolVLMImageProcessorPil)


def gemma3() -> Recipe:
    """Every second layer has a window narrower than the prompt."""
    local = {"sliding_window": 12, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return Recipe(
        {
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **SIGHT},
            "text_config": {"model_type": "gemma3_text", **TEXT, **local},
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": False,
        },
        words(["<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", named=named),
        Gemma3ImageProcessorPil(size=SQUARE),
        "Gemma3Processor",
        {"image_seq_length": 4},
        template(
            "<start_of_turn>user\n",
            "<start_of_turn>model\n",
            "<end_of_turn>\n",
            "<start_of_image>",
            start="{{ bos_token }}",
        ),
    )


def internvl() -> Recipe:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return Recipe(
        {
            "vision_config": {**SIGHT, "image_size": [32, 32], "patch_size": [8, 8]},
            "text_config": {"model_type": "qwen2", **TEXT},
            "image_seq_length": 4,
            "tie_word_embeddings": False,
        },
        words(["<|im_start|>"], eos="<|im_end|>", named=named),
        GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
        "InternVLProcessor",
        {"image_seq_length": 4},
        template("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<IMG_CONTEXT>\n"),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
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


def write(name: str, folder: Path, times: int = 1) -> Path:
    """The checkpoint of family `name`, in `folder`; its language model so many times as wide."""
    torch.manual_seed(0)
    recipe = widened(RECIPES[name](), times)
    network = AutoModelForImageTextToText.from_config(config_of(name, recipe))
    shake(network)
    with torch.no_grad():  # a placeholder in an answer would be taken for a picture when all is read again
        network.get_output_embeddings().weight[[*recipe.tokenizer.added_tokens_decoder]] = 0
    network.save_pretrained(folder)
    recipe.tokenizer.save_pretrained(folder)
    recipe.pictures.save_pretrained(folder)
    settings = dict(recipe.settings)
    if qformer := settings.pop("qformer_tokenizer", None):
        qformer.save_pretrained(folder / "qformer_tokenizer")
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": recipe.processor, **settings}))
    if recipe.template:
        (folder / "chat_template.jinja").write_text(recipe.template)
    return folder


def for_vllm(folder: Path, name: str) -> Path:
    """The same checkpoint as vLLM can run it: its kernels have no heads smaller than 32."""
    write(name, folder, times=4)
    weights = load_file(folder / "model.safetensors")
    if "vision_tower.embeddings.class_embedding" in weights:  # CLIP's, which hub checkpoints have one module deeper
        deeper = ("vision_tower.", "vision_tower.vision_model.")
        named = {key.replace(*deeper) if key.startswith(deeper[0]) else key: value for key, value in weights.items()}
        save_file(named, folder / "model.safetensors", {"format": "pt"})
    return folder


def widened(recipe: Recipe, times: int) -> Recipe:
    if times == 1:
        return recipe
    if "<start_of_image>" in recipe.tokenizer.get_vocab():  # vLLM looks for Gemma's line breaks
        recipe.tokenizer.add_tokens(["\n" * number for number in range(1, 5)])
    text, sight = dict(recipe.config["text_config"]), dict(recipe.config["vision_config"])
    text |= {key: text[key] * times for key in ("hidden_size", "head_dim") if key in text}
    sight |= {key: WIDTH * times for key in ("hidden_size", "out_hidden_size") if sight.get(key) == WIDTH}
    if sections := text.get("rope_parameters", {}).get("mrope_section"):
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [times * one for one in sections]}
    if text.get("use_sliding_window"):  # in some layers alone, which vLLM refuses
        text["use_sliding_window"] = False
    return replace(recipe, config=recipe.config | {"text_config": text, "vision_config": sight})


def config_of(name: str, recipe: Recipe) -> Any:
    ids = recipe.tokenizer.get_vocab()
    text = {**recipe.config["text_config"], "vocab_size": len(ids), "eos_token_id": recipe.tokenizer.eos_token_id}
    known = transformers.CONFIG_MAPPING[name]
    tokens = {field: ids[token] for field, tokens in PLACEHOLDERS.items() for token in tokens if token in ids}
    field_names = {"image_token_id": "image_token_index"} if "image_token_index" in known.__annotations__ else {}
    tokens = {field_names.get(field, field): value for field, value in tokens.items()}
    return known(**{**recipe.config, "text_config": text, **tokens})


@torch.no_grad()
def shake(network: nn.Module) -> None:
    """Weights that keep every layer's output large, and logits far enough apart that rounding decides nothing."""
    for path, parameter in network.named_parameters():
        if parameter.dim() > 1:
            gain = 4.0 if "lm_head" in path else 1.5
            parameter.normal_(std=gain / math.sqrt(parameter[0].numel()))
        elif path.endswith("bias"):
            parameter.normal_(std=0.1)
