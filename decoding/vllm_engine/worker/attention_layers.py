"""The attention layers of a model of vLLM, which the taps find."""

from __future__ import annotations

from typing import Any

from torch import nn


def has_attention(module: Any) -> bool:
    """Return whether the module is a layer's attention with an output projection."""
    from vllm.model_executor.layers.attention import Attention

    return isinstance(getattr(module, "attn", None), Attention) and isinstance(
        getattr(module, "o_proj", None), nn.Module
    )
