"""What differs between families of vision-language models, as a table of names."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from decoding.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Family:
    """Where things are in a checkpoint of one `model_type`. Paths are attribute paths from the model or the layer."""

    decoder: str = "model.language_model"  # the language model without its head
    head_output: str = "self_attn.o_proj"  # in a decoder layer: its input is the concatenated head outputs
    processor: str | None = None  # transformers' class for prompts; None: the one that the checkpoint names
    chats: bool = True  # False: no chat template; the prompt is the texts of its messages, one below the other
    tower: str | None = None  # vision tower whose patches are the picture's tokens, one for one, after a class token
    narrows: bool = False  # its prompts can lose tokens half-way: no layer has a mask or an input of its own
    most_pictures: int | None = None  # in one prompt
    picture_axis: int = 0  # along which the pixels of several prompts are joined
    per_token: tuple[str, ...] = ()  # processor outputs shaped like the ids, padded with 0
    ragged: tuple[str, ...] = ()  # processor outputs padded with 0 to a common shape before they are joined


# Processors with a video processor are named here, so that it can be left out: it does not load without torchvision.
FAMILIES = MappingProxyType(
    {
        "llava": Family(tower="model.vision_tower", narrows=True),
        "llava_next": Family(ragged=("pixel_values",)),
        "qwen2_vl": Family(processor="Qwen2VLProcessor", per_token=("mm_token_type_ids",)),
        "qwen2_5_vl": Family(processor="Qwen2_5_VLProcessor", per_token=("mm_token_type_ids",)),
        "qwen3_vl": Family(processor="Qwen3VLProcessor", per_token=("mm_token_type_ids",)),
        "instructblip": Family(
            decoder="language_model.model",
            chats=False,
            most_pictures=1,
            ragged=("qformer_input_ids", "qformer_attention_mask"),
        ),
        "idefics3": Family(decoder="model.text_model", picture_axis=1),
        # Its own class differs only in videos, for which it also wants a package that spells numbers.
        "smolvlm": Family(processor="Idefics3Processor", decoder="model.text_model", picture_axis=1),
        "gemma3": Family(per_token=("token_type_ids",)),
        "internvl": Family(processor="InternVLProcessor"),
    }
)


def family_of(config: Any) -> Family:
    """Raises:
    Unsupported: nobody has described this family yet, or its language model reads the prompt with an encoder.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise Unsupported(f"Model type '{config.model_type}' is not supported. Supported: {known}.", param="model")
    text = config.get_text_config()
    if text.is_encoder_decoder:
        raise Unsupported(
            f"The language model '{text.model_type}' is an encoder-decoder; only decoders are supported.", param="model"
        )
    return FAMILIES[config.model_type]


def context_of(config: Any) -> int:
    """How many tokens the language model was made for, prompt and answer together."""
    text = config.get_text_config()
    trained: int = text.max_position_embeddings
    rope = getattr(text, "rope_parameters", None) or {}
    # "dynamic" is not stretched: past the trained length it would turn every row's keys as the longest row needs.
    match rope.get("rope_type"):
        case "linear":
            return int(trained * rope["factor"])
        case "yarn" if rope.get("factor"):
            return max(trained, int(rope.get("original_max_position_embeddings", trained) * rope["factor"]))
    return trained
