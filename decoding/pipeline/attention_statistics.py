"""Statistics of a model's attention heads in a file, which the operator measures once for each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from decoding.errors import Unsupported
from decoding.tensor_hooks import Tensors

# Mean attention of a head to a token of the answer, where the model hallucinates an object and where it does not.
HALLUCINATED, REAL = "hallucinated", "real"
CPU = torch.device("cpu")
STATISTICS_KEY = "attention_statistics"  # of the file, in the configuration of vLLM
NAMES = (HALLUCINATED, REAL)


def load_attention_statistics(file: Path | None, config: Any, device: torch.device = CPU) -> Tensors:
    """Load the statistics of a model.

    Args:
        file: The file, or None.
        config: The checkpoint's config.
        device: Device of the statistics.

    Returns:
        Name -> [layers, heads], float32; empty without a file. `Unsupported` gives the reason if the file does not fit
        the model.
    """
    if file is None:
        return {}
    text_config = config.get_text_config()
    shape = (int(text_config.num_hidden_layers), int(text_config.num_attention_heads))
    return {name: tensor.to(device) for name, tensor in read_attention_statistics(file, shape).items()}


def read_attention_statistics(file: Path, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Read a file of statistics.

    Args:
        file: Safetensors file with the tensors of `NAMES`.
        shape: Layers and heads of the model.

    Returns:
        Name -> [layers, heads], float32.

    Raises:
        Unsupported: The file cannot be read, lacks a tensor, or is of another model.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            found = {name: opened.get_tensor(name).float() for name in NAMES if name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Unsupported(f"attention_statistics: {file} is no readable safetensors file ({error}).") from None
    for name in NAMES:
        if name not in found:
            raise Unsupported(f"attention_statistics: {file} has no tensor '{name}'.")
        if found[name].shape != shape:
            raise Unsupported(
                f"attention_statistics: '{name}' of {file} has the shape {list(found[name].shape)}. The model has "
                f"{shape[0]} layers with {shape[1]} heads each, so that it would be {list(shape)}."
            )
        if not bool((found[name].isfinite() & (found[name] >= 0)).all()):
            raise Unsupported(f"attention_statistics: '{name}' of {file} has negative or infinite values.")
    return found


def write_attention_statistics(file: Path, hallucinated: Tensor, real: Tensor) -> None:
    """Write statistics, each [layers, heads], to a safetensors file."""
    save_file({HALLUCINATED: hallucinated.float().contiguous(), REAL: real.float().contiguous()}, file)
