"""What a model is loaded with, and what is refused before it is."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from decoding import processor
from decoding.errors import Unsupported
from decoding.families import family_of
from decoding.hf_engine import loading
from decoding.hf_engine.loading import load
from decoding.hf_engine.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.processor import end_tokens, load_processor
from tests.decoding.families.checkpoints import RECIPES
from tests.decoding.families.conversations import BLIND, ONE

Checkpoint = Callable[[str], Path]


def loaded_with(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the next checkpoint is loaded with; none is."""
    given: dict[str, Any] = {}

    def from_pretrained(_: str, **options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(eval=lambda: None)

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    return given


def test_quantization_needs_bitsandbytes(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="needs bitsandbytes: pip install"):
        Model(HFSettings(str(checkpoint("llava")), device="cpu", quantization="4bit"))


def test_unknown_quantization_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(Unsupported, match="'4bit' or '8bit', not '3bit'"):
        Model(HFSettings(str(checkpoint("llava")), device="cpu", quantization="3bit"))


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_weights_are_quantised_as_asked(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = loaded_with(monkeypatch)
    monkeypatch.setattr(loading, "find_spec", lambda _: object())
    load(HFSettings("any", device="cpu", quantization=bits))
    told = given["quantization_config"]
    assert (told.load_in_4bit, told.load_in_8bit) == (bits == "4bit", bits == "8bit")


@pytest.mark.parametrize(
    ("device", "gpus", "placed"),
    [("auto", 0, "cpu"), ("auto", 1, "cuda"), ("auto", 2, "auto"), ("cpu", 2, "cpu"), ("cuda:1", 2, "cuda:1")],
)
def test_a_model_is_spread_only_over_several_gpus(
    device: str, gpus: int, placed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = loaded_with(monkeypatch)
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(loading.torch.cuda, "device_count", lambda: gpus)
    load(HFSettings("any", device=device))
    assert given["device_map"] == placed
    assert given["dtype"] == (torch.float32 if placed == "cpu" else torch.bfloat16)


@pytest.mark.parametrize(
    ("generation", "tokenizer", "ends"), [([7, 8], 1, [7, 8]), (0, 1, [0]), (None, 1, [1]), (None, None, [])]
)
def test_answers_end_where_generation_does(generation: Any, tokenizer: Any, ends: list[int]) -> None:
    ids = (SimpleNamespace(eos_token_id=given) for given in (generation, tokenizer))
    assert end_tokens(*ids) == ends


def test_a_missing_package_is_named(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(_: str) -> None:
        raise ImportError("It requires the torchvision library.")

    monkeypatch.setattr(processor.transformers, "AutoProcessor", SimpleNamespace(from_pretrained=from_pretrained))
    family = family_of(AutoConfig.from_pretrained(checkpoint("llava")))
    with pytest.raises(Unsupported, match="requires the torchvision library"):
        load_processor(str(checkpoint("llava")), family)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"])
def test_processors_load_without_their_video_part(name: str, checkpoint: Checkpoint) -> None:
    family = family_of(AutoConfig.from_pretrained(checkpoint(name)))
    assert not hasattr(load_processor(str(checkpoint(name)), family), "video_processor")


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_half_the_precision_is_nearly_the_same(name: str, checkpoint: Checkpoint) -> None:
    """That it runs at all: parts of a network that stay in float32 must not meet the others unconverted."""
    whole, half = (
        Model(HFSettings(str(checkpoint(name)), device="cpu", dtype=dtype)) for dtype in ("float32", "float16")
    )
    encoded = [whole.encoder.encode(prompt) for prompt in (ONE, BLIND)]
    assert half.dtype == torch.float16
    said = []
    for model in (whole, half):
        ready, cache = model.prefill(encoded), model.new_cache()
        for one in ready:
            cache.join(one.pairs)
        said.append(model.decode(torch.tensor([5, 6]), [one.position for one in ready], cache, None))
    torch.testing.assert_close(*said, atol=0.2, rtol=0)
