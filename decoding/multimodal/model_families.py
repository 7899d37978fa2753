"""Differences between families of vision-language models, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from decoding.errors import Unsupported


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Properties of the checkpoints of one `model_type`.

    Attributes:
        title: Name of the checkpoints, for the documentation.
        decoder_path: Attribute path from the model to the language model without its head.
        output_projection_path: Attribute path from a decoder layer to the attention's output projection. Its input is
            the concatenated head outputs.
        feed_forward_path: Attribute path from a decoder layer to the module whose output the layer adds to the residual
            stream after its feed-forward network.
        attention_path: The same after its attention.
        processor_class: Transformers class of the processor. None: the class that the checkpoint names.
        has_chat_template: If False, the prompt is the texts of its messages, joined by newlines.
        vision_tower_path: Attribute path to a vision tower with a class token, whose patches are the image tokens one
            for one. None: the family has no such tower.
        supports_token_pruning: Whether a prompt can lose tokens between layers, because no layer has a mask or an input
            of its own.
        max_images: Most images in one prompt. None: no limit.
        image_axis: Axis along which the pixels of several prompts are concatenated.
        per_token: Processor outputs shaped like the ids, padded with 0.
        padded: Processor outputs padded with 0 to a common shape before they are concatenated.
    """

    title: str
    decoder_path: str = "model.language_model"
    output_projection_path: str = "self_attn.o_proj"
    feed_forward_path: str = "mlp"
    attention_path: str = "self_attn"
    processor_class: str | None = None
    has_chat_template: bool = True
    vision_tower_path: str | None = None
    supports_token_pruning: bool = False
    max_images: int | None = None
    image_axis: int = 0
    per_token: tuple[str, ...] = ()
    padded: tuple[str, ...] = ()


# A family whose processor has a video part names its class, so that the part can be left out: it needs torchvision.
FAMILIES = MappingProxyType(
    {
        "llava": ModelFamily("LLaVA-1.5", vision_tower_path="model.vision_tower", supports_token_pruning=True),
        "vipllava": ModelFamily("ViP-LLaVA"),
        "llava_next": ModelFamily("LLaVA-NeXT", padded=("pixel_values",)),
        # Its own processor takes its video part as first argument, and treats images alike.
        "llava_next_video": ModelFamily(
            "LLaVA-NeXT-Video", processor_class="LlavaNextProcessor", padded=("pixel_values",)
        ),
        "llava_onevision": ModelFamily(
            "LLaVA-OneVision", processor_class="LlavaOnevisionProcessor", padded=("pixel_values",)
        ),
        "qwen2_vl": ModelFamily("Qwen2-VL", processor_class="Qwen2VLProcessor", per_token=("mm_token_type_ids",)),
        "qwen2_5_vl": ModelFamily(
            "Qwen2.5-VL", processor_class="Qwen2_5_VLProcessor", per_token=("mm_token_type_ids",)
        ),
        "qwen3_vl": ModelFamily("Qwen3-VL", processor_class="Qwen3VLProcessor", per_token=("mm_token_type_ids",)),
        "qwen3_vl_moe": ModelFamily(
            "Qwen3-VL-MoE", processor_class="Qwen3VLProcessor", per_token=("mm_token_type_ids",)
        ),
        "glm4v": ModelFamily(
            "GLM-4.1V",
            feed_forward_path="post_mlp_layernorm",
            attention_path="post_self_attn_layernorm",
            processor_class="Glm4vProcessor",
            per_token=("mm_token_type_ids",),
        ),
        "glm4v_moe": ModelFamily("GLM-4.5V", processor_class="Glm4vProcessor", per_token=("mm_token_type_ids",)),
        "glm46v": ModelFamily(
            "GLM-4.6V-Flash",
            feed_forward_path="post_mlp_layernorm",
            attention_path="post_self_attn_layernorm",
            processor_class="Glm46VProcessor",
            per_token=("mm_token_type_ids",),
        ),
        "glm_ocr": ModelFamily(
            "GLM-OCR",
            feed_forward_path="post_mlp_layernorm",
            attention_path="post_self_attn_layernorm",
            processor_class="Glm46VProcessor",
            per_token=("mm_token_type_ids",),
        ),
        "paddleocr_vl": ModelFamily("PaddleOCR-VL", per_token=("mm_token_type_ids",)),
        "exaone4_5": ModelFamily(
            "EXAONE 4.5",
            feed_forward_path="post_feedforward_layernorm",
            attention_path="post_attention_layernorm",
            processor_class="Exaone4_5_Processor",
        ),
        "video_llama_3": ModelFamily("VideoLLaMA 3", processor_class="VideoLlama3Processor"),
        "lighton_ocr": ModelFamily("LightOnOCR", padded=("pixel_values",)),
        "instructblip": ModelFamily(
            "InstructBLIP",
            decoder_path="language_model.model",
            has_chat_template=False,
            max_images=1,
            padded=("qformer_input_ids", "qformer_attention_mask"),
        ),
        "idefics2": ModelFamily(
            "Idefics2", decoder_path="model.text_model", image_axis=1, padded=("pixel_values", "pixel_attention_mask")
        ),
        "idefics3": ModelFamily("Idefics3", decoder_path="model.text_model", image_axis=1),
        # SmolVLM's own processor differs only for videos, and requires num2words for them.
        "smolvlm": ModelFamily(
            "SmolVLM", processor_class="Idefics3Processor", decoder_path="model.text_model", image_axis=1
        ),
        "gemma3": ModelFamily(
            "Gemma 3",
            feed_forward_path="post_feedforward_layernorm",
            attention_path="post_attention_layernorm",
            per_token=("token_type_ids",),
        ),
        "internvl": ModelFamily("InternVL", processor_class="InternVLProcessor"),
        "qianfan_ocr": ModelFamily("Qianfan-OCR"),
        "aya_vision": ModelFamily("Aya Vision"),
        "deepseek_vl": ModelFamily("DeepSeek-VL"),
        "janus": ModelFamily("Janus-Pro"),
    }
)


# Families of the same makers or of the same design, by the beginning of the model type. Spelling decides among others.
RELATIVES = MappingProxyType(
    {
        "qwen": "qwen3_vl",
        "glm": "glm4v",
        "paligemma": "gemma3",
        "gemma": "gemma3",
        "blip": "instructblip",
        "idefics": "idefics3",
        "mistral": "llava",
        "pixtral": "llava",
        "mllama": "llava_next",
        "llama": "llava_next",
        "granite": "llava_next",
        "cohere": "aya_vision",
        "minicpm": "internvl",
        "ovis": "internvl",
        "ernie": "paddleocr_vl",
        "hunyuan": "qwen2_5_vl",
        "deepseek": "deepseek_vl",
        "lfm2": "smolvlm",
    }
)


def require_family(config: Mapping[str, Any], source: str) -> None:
    """Check the family of a checkpoint by its config.json, before transformers reads it.

    Args:
        config: The content of config.json.
        source: Folder or hub id of the checkpoint.

    Raises:
        Unsupported: The family is unknown.
    """
    model_type = str(config.get("model_type", ""))
    if model_type in FAMILIES:
        return
    supported = ", ".join(FAMILIES)
    if not model_type:
        raise Unsupported(
            f"The config.json of {source} names no model_type, so it is no model of transformers. Supported model "
            f"types: {supported}.",
            param="model",
        )
    nearest = find_nearest_family(model_type)
    hint = f" The nearest supported family is '{nearest}': serve a checkpoint of it instead." if nearest else ""
    kind = "" if any("vision" in name for name in config) else " It seems to be a language model without images."
    raise Unsupported(
        f"Model type '{model_type}' of {source} is not supported.{kind}{hint} Supported model types: {supported}.",
        param="model",
    )


def find_nearest_family(model_type: str) -> str | None:
    """Find the supported family that is most like a model type; None if there is none."""
    close = get_close_matches(model_type, FAMILIES, n=1, cutoff=0.8)
    if close:
        return close[0]
    relatives = (family for start, family in RELATIVES.items() if model_type.startswith(start))
    return next(relatives, None) or next(iter(get_close_matches(model_type, FAMILIES, n=1, cutoff=0.6)), None)


def get_family(config: Any) -> ModelFamily:
    """Look up the family of a transformers config.

    Returns:
        Its entry in `FAMILIES`.

    Raises:
        Unsupported: The family is unknown, or its language model is an encoder-decoder.
    """
    require_family({"model_type": config.model_type, "vision_config": None}, "the checkpoint")
    text_config = config.get_text_config()
    if text_config.is_encoder_decoder:
        raise Unsupported(
            f"The language model '{text_config.model_type}' is an encoder-decoder; only decoders are supported.",
            param="model",
        )
    return FAMILIES[config.model_type]


def get_max_model_len(config: Any) -> int:
    """Return how many tokens, prompt and answer together, the language model's positions support."""
    text_config = config.get_text_config()
    trained: int = text_config.max_position_embeddings
    rope = getattr(text_config, "rope_parameters", None) or {}
    # "dynamic" is not stretched: past the trained length it would rotate every row's keys as the longest row requires.
    match rope.get("rope_type"):
        case "linear":
            return int(trained * rope["factor"])
        case "yarn" if rope.get("factor"):
            return max(trained, int(rope.get("original_max_position_embeddings", trained) * rope["factor"]))
    return trained
