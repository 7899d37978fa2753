"""Loads a checkpoint: its network, and its processor, which is its tokenizer and what it does to pictures."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from decoding.errors import Unsupported
from decoding.hf_engine.encoder import chat_template
from decoding.hf_engine.families import Family
from decoding.hf_engine.settings import HFSettings


def load(settings: HFSettings) -> Any:
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    spread = settings.device == "auto" and torch.cuda.device_count() > 1
    default = torch.float32 if device == "cpu" else torch.bfloat16
    dtype = default if settings.dtype == "auto" else getattr(torch, settings.dtype)
    network = AutoModelForImageTextToText.from_pretrained(
        settings.model,
        dtype=dtype,
        device_map="auto" if spread else device,
        use_safetensors=True,
        quantization_config=quantization(settings.quantization),
    )
    return network.eval()


def quantization(bits: str | None) -> Any:
    if bits is None:
        return None
    if bits not in ("4bit", "8bit"):
        raise Unsupported(f"Quantization is '4bit' or '8bit', not '{bits}'.")
    if find_spec("bitsandbytes") is None:
        raise Unsupported("Quantization needs bitsandbytes: pip install 'onlyseen[quantization]'.")
    return BitsAndBytesConfig(load_in_4bit=bits == "4bit", load_in_8bit=bits == "8bit")


def end_tokens(network: Any, tokenizer: Any) -> list[int]:
    """As `generate` takes them: one id, several, or none."""
    ids = network.generation_config.eos_token_id
    ids = tokenizer.eos_token_id if ids is None else ids
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def load_processor(model: str, family: Family) -> Any:
    """Raises:
    Unsupported: the checkpoint's processor needs a package that is not installed, or has no chat template.
    """
    loader = transformers.AutoProcessor if family.processor is None else pictures_only(family.processor)
    try:
        processor = loader.from_pretrained(model)
    except ImportError as error:
        raise Unsupported(f"The model's processor needs a package that is not installed: {error}") from error
    if family.chats and chat_template(processor) is None:
        raise Unsupported("The checkpoint has no chat template, so messages cannot be put to this model.")
    return processor


def pictures_only(name: str) -> Any:
    """The processor class without its video processor.

    Decided here and not by what is installed, so that a prompt is read the same way with and without torchvision.
    """
    own: Any = getattr(transformers, name)

    class PicturesOnly(own):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in own.get_attributes() if part != "video_processor"]

    PicturesOnly.__name__ = name
    return PicturesOnly
