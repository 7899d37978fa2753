"""Checkpoints that cannot be served: one paragraph that names the problem and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from decoding.errors import Unsupported
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.multimodal import config, weight_files
from decoding.multimodal.checkpoint_errors import explain_checkpoint_errors
from decoding.multimodal.model_families import FAMILIES, RELATIVES, find_nearest_family
from decoding.multimodal.weight_files import INDEX, WeightCounts, read_weight_counts, require_memory

Damage = Callable[[Path], Any]


def edit(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def shrink_vocabulary(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["vocab_size"] -= 8
    (folder / "config.json").write_text(json.dumps(content))


def add_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


CASES: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), r"has no config\.json.* hub id as OWNER/NAME"),
    "config that is no JSON": (edit("config.json", b"{"), r"config\.json of .* cannot be loaded.* Download"),
    "config without a type": (edit("config.json", b'{"a": 1}'), "names no model_type.* Supported model types: llava"),
    "unknown family": (
        edit("config.json", b'{"model_type": "llava_nexxt", "vision_config": {}}'),
        "'llava_nexxt' of .* nearest supported family is 'llava_next'",
    ),
    "family that transformers knows": (
        edit("config.json", b'{"model_type": "paligemma", "vision_config": {}}'),
        "'paligemma' of .* nearest supported family is 'gemma3'",
    ),
    "language model": (edit("config.json", b'{"model_type": "gpt2"}'), "'gpt2' of .* language model without images"),
    "no weights": (remove("model.safetensors"), r"has no weights: .* Download the safetensors files"),
    "file of weights that is cut": (cut, r"model\.safetensors is damaged: it has [\d,]+ bytes.* describes [\d,]+"),
    "file of weights that is no safetensors": (edit("model.safetensors", b"x" * 100), "100 bytes, and no header"),
    "file of weights that is empty": (edit("model.safetensors", b""), "0 bytes, and no header"),
    "pointer of Git LFS": (
        edit("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n"),
        "git lfs pull",
    ),
    "missing file of weights": (add_index, "lacks 1 of the 2 files of weights.* such as model-00002-of-00002"),
    "damaged index": (edit(INDEX, b"[]"), rf"{INDEX} is damaged"),
    "weights of another config": (shrink_vocabulary, r"weights of .* do not fit its config\.json"),
    "no tokenizer": (remove("tokenizer.json"), r"lacks tokenizer\.json, so that its processor"),
    "no image processor": (remove("processor_config.json"), r"lacks preprocessor_config\.json or processor_config"),
    "damaged tokenizer": (edit("tokenizer.json", b"{"), r"processor of .* \(JSONDecodeError: .* A file is damaged"),
}


@pytest.mark.parametrize("name", CASES)
def test_error_names_the_problem_and_what_to_do(name: str, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    damage, expected = CASES[name]
    damage(folder)
    with pytest.raises(Unsupported, match=expected) as refused:
        Model(HFSettings(str(folder), device="cpu"))
    assert str(folder) in refused.value.message
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 800


def raise_hub_error(kind: type[Exception]) -> Callable[[str], None]:
    """Raise an error of the hub as transformers does."""

    def get_config_dict(_: str) -> None:
        try:
            raise kind("401", response=Mock())  # type: ignore[call-arg]
        except kind as error:
            raise OSError("You are trying to access a model.\nIt is long.") from error

    return get_config_dict


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (GatedRepoError, "is gated.* https://huggingface.co/some/model, then set HF_TOKEN"),
        (RepositoryNotFoundError, "neither a folder some/model .*HF_TOKEN"),
    ],
)
def test_error_of_the_hub_is_explained(kind: type[Exception], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.PreTrainedConfig, "get_config_dict", raise_hub_error(kind))
    with pytest.raises(Unsupported, match=expected):
        config.load_config("some/model")


def test_model_that_is_not_downloaded_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_config_dict(_: str) -> None:
        raise OSError("We couldn't connect.") from LocalEntryNotFoundError("none")

    monkeypatch.setattr(config.PreTrainedConfig, "get_config_dict", get_config_dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unsupported, match=r"HF_HUB_OFFLINE is set.* `hf download some/model`"):
        config.load_config("some/model")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_lack_of_memory_is_explained(error: Exception) -> None:
    expected = r"weights of some/model do not fit into memory.* --quantization 4bit"
    with pytest.raises(Unsupported, match=expected), explain_checkpoint_errors("some/model", "weights"):
        raise error


def test_weights_larger_than_the_memory_are_refused_before_they_are_loaded(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tiny / "model.safetensors").stat().st_size
    counted = read_weight_counts(tiny).compute_bytes(torch.float32)
    assert 0.9 * size < counted <= size
    monkeypatch.setattr(weight_files, "get_available_memory", lambda _: counted - 1)
    with pytest.raises(Unsupported, match=r"GB of memory available.* --dtype bfloat16"):
        Model(HFSettings(str(tiny), device="cpu"))
    Model(HFSettings(str(tiny), device="cpu", dtype="bfloat16"))


def test_available_memory_is_known_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    available = weight_files.get_available_memory("cpu")
    assert available is None or available > 1 << 26
    monkeypatch.setattr(weight_files, "read_container_limit", lambda: 1000)
    assert weight_files.get_available_memory("cpu") in (None, 1000)
    require_memory("some/model", 10, "cpu")
    assert WeightCounts(10, 3).compute_bytes(torch.float16) == 23


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("video_llava", "video_llama_3"),
        ("qwen3_5", "qwen3_vl"),
        ("glm5_next", "glm4v"),
        ("blip-2", "instructblip"),
        ("idefics", "idefics3"),
        ("gemma3n", "gemma3"),
        ("pixtral", "llava"),
        ("mistral3", "llava"),
        ("cohere2_vision", "aya_vision"),
        ("ernie4_5_vl_moe", "paddleocr_vl"),
        ("deepseek_ocr2", "deepseek_vl"),
        ("xyz", None),
    ],
)
def test_nearest_family(model_type: str, nearest: str | None) -> None:
    assert model_type not in FAMILIES
    assert find_nearest_family(model_type) == nearest
    assert set(RELATIVES.values()) <= set(FAMILIES)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_device_that_cannot_be_used_is_explained(device: str, tiny: Path) -> None:
    with pytest.raises(Unsupported, match=r"--device cannot be used \(.+ --device cpu, or auto"):
        Model(HFSettings(str(tiny), device=device))
