"""The measured models: the embedded one, and a random one whose weights exceed a core's caches."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

EMBEDDED = Path(__file__).parents[2] / "embedded"


def build_wide_model(folder: Path, *, width: int = 1024, layers: int = 7) -> Path:
    """Save a LLaVA with random weights: the embedded model's tower and tokenizer with a wider language model."""
    config = AutoConfig.from_pretrained(EMBEDDED / "model")
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 11 * width // 4, layers
    text.num_attention_heads = text.num_key_value_heads = width // 64
    text.head_dim = 64
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(EMBEDDED / "model").save_pretrained(folder)
    return folder
