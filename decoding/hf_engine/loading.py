"""From a checkpoint to its network, on the device and in the precision that the settings ask for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from decoding.errors import Unsupported
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
