"""Arguments with which a model is loaded, and settings that are rejected before."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from decoding.errors import Unsupported
from decoding.hf_engine.model import network
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.model.network import load_network
from decoding.hf_engine.settings import HFSettings
from decoding.multimodal import processor
from decoding.multimodal.model_families import get_family
from decoding.multimodal.processor import get_eos_token_ids, load_processor
from tests.decoding.families.checkpoints import CHECKPOINTS
from tests.decoding.families.prompts import BLIND, ONE

Checkpoint = Callable[[str], Path]


def loaded_with(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Record the arguments of the next load, and load nothing."""
    given: dict[str, Any] = {}

    def from_pretrained(_: str, **options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(eval=lambda: None)

    monkeypatch.setattr(network.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    return given


def test_quantization_needs_bitsandbytes(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="needs bitsandbytes: pip install"):
        Model(HFSettings(str(checkpoint("llava")), device="cpu", quantization="4bit"))


def test_unknown_quantization_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(Unsupported, match="'4bit' or '8bit', not '3bit'"):
        Model(HFSettings(str(checkpoint("llava")), device="cpu", quantization="3bit"))


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_weights_are_quantized_as_configured(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = loaded_with(monkeypatch)
    monkeypatch.setattr(network, "find_spec", lambda _: object())
    load_network(HFSettings("any", device="cpu", quantization=bits))
    config = given["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == "4bit", bits == "8bit")


@pytest.mark.parametrize(
    ("device", "gpus", "placed"),
    [("auto", 0, "cpu"), ("auto", 1, "cuda"), ("auto", 2, "auto"), ("cpu", 2, "cpu"), ("cuda:1", 2, "cuda:1")],
)
def test_model_is_split_only_over_several_gpus(
    device: str, gpus: int, placed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = loaded_with(monkeypatch)
    monkeypatch.setattr(network.torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(network.torch.cuda, "device_count", lambda: gpus)
    load_network(HFSettings("any", device=device))
    assert given["device_map"] == placed
    assert given["dtype"] == (torch.float32 if placed == "cpu" else torch.bfloat16)


@pytest.mark.parametrize(
    ("generation", "tokenizer", "ends"), [([7, 8], 1, [7, 8]), (0, 1, [0]), (None, 1, [1]), (None, None, [])]
)
def test_eos_token_ids_follow_the_generation_config(generation: Any, tokenizer: Any, ends: list[int]) -> None:
    ids = (SimpleNamespace(eos_token_id=given) for given in (generation, tokenizer))
    assert get_eos_token_ids(*ids) == ends


def test_error_names_the_missing_package(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(_: str) -> None:
        raise ImportError("It requires the torchvision library.")

    monkeypatch.setattr(processor.transformers, "AutoProcessor", SimpleNamespace(from_pretrained=from_pretrained))
    family = get_family(AutoConfig.from_pretrained(checkpoint("llava")))
    with pytest.raises(Unsupported, match="requires the torchvision library"):
        load_processor(str(checkpoint("llava")), family)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"])
def test_processors_load_without_a_video_processor(name: str, checkpoint: Checkpoint) -> None:
    family = get_family(AutoConfig.from_pretrained(checkpoint(name)))
    assert not hasattr(load_processor(str(checkpoint(name)), family), "video_processor")


@torch.inference_mode()
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_half_precision_gives_close_logits(name: str, checkpoint: Checkpoint) -> None:
    """Parts of a network that stay in float32 must be converted where they meet the others."""
    whole, half = (
        Model(HFSettings(str(checkpoint(name)), device="cpu", dtype=dtype)) for dtype in ("float32", "float16")
    )
    encoded = [whole.encoder.encode(prompt) for prompt in (ONE, BLIND)]
    assert half.dtype == torch.float16
    logits = []
    for model in (whole, half):
        ready, cache = model.prefill(encoded), model.create_cache()
        for one in ready:
            cache.add_row(one.key_values)
        logits.append(model.decode(torch.tensor([5, 6]), [one.next_position for one in ready], cache, None))
    torch.testing.assert_close(*logits, atol=0.2, rtol=0)
