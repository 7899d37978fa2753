"""Folders with random steering vectors for the models of the tests."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from decoding.multimodal.config import load_config


@cache
def write_vectors(model: Path) -> Path:
    """Write a folder of vectors that fit a model. It is read-only, and goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="vectors"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = load_config(str(model)).get_text_config()
    for number, name in enumerate(("steer", "vti")):
        random = torch.Generator().manual_seed(number)
        vectors = torch.randn(config.num_hidden_layers, config.hidden_size, generator=random)
        save_file({"vectors": vectors}, folder / f"{name}.safetensors")
    return folder


def read_all_vectors(model: Path) -> dict[str, Tensor]:
    """Return name of a file -> its [layers, width] vectors."""
    return {file.name: load_file(file)["vectors"] for file in write_vectors(model).iterdir()}
