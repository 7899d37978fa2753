"""Files of attention statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from decoding.engine import EngineSettings
from decoding.errors import Unsupported
from decoding.pipeline.attention_statistics import (
    STATISTICS_KEY,
    load_attention_statistics,
    read_attention_statistics,
    write_attention_statistics,
)
from decoding.pipeline.dry_run import dry_run
from decoding.registry import build
from decoding.vllm_engine.frontend.engine_args import build_engine_args
from decoding.vllm_engine.settings import VllmSettings
from tests.decoding.fakes import RecordingEngine, make_request
from tests.decoding.hf_engine.harness import run_strategies

SHAPE = (3, 2)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    hallucinated, real = torch.rand(SHAPE), torch.rand(SHAPE)
    write_attention_statistics(tmp_path / "s.safetensors", hallucinated, real)
    found = read_attention_statistics(tmp_path / "s.safetensors", SHAPE)
    assert torch.equal(found["hallucinated"], hallucinated)
    assert torch.equal(found["real"], real)
    assert load_attention_statistics(None, object()) == {}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"real": torch.ones(SHAPE)}, "has no tensor 'hallucinated'"),
        (
            {"hallucinated": torch.ones(SHAPE), "real": torch.ones(2, 2)},
            r"'real' .* the shape \[2, 2\]. The model has 3",
        ),
        ({"hallucinated": torch.ones(SHAPE), "real": -torch.ones(SHAPE)}, "'real' .* negative or infinite"),
        ({"hallucinated": torch.full(SHAPE, torch.nan), "real": torch.ones(SHAPE)}, "'hallucinated' .* infinite"),
    ],
)
def test_file_that_does_not_fit_is_refused(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "s.safetensors")
    with pytest.raises(Unsupported, match=f"^attention_statistics: .*{message}"):
        read_attention_statistics(tmp_path / "s.safetensors", SHAPE)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_text("no tensors")
    for name in ("s.safetensors", "missing.safetensors"):
        with pytest.raises(Unsupported, match=f"^attention_statistics: .*{name} is no readable safetensors file"):
            read_attention_statistics(tmp_path / name, SHAPE)


async def test_strategy_that_needs_statistics_is_refused_without_them() -> None:
    (strategy,) = build("adaiat", {})
    assert "attention_statistics" in dry_run(strategy).needs
    engine = RecordingEngine(lacks=frozenset({"attention_statistics"}))
    request = make_request("Describe the image.")
    with pytest.raises(Unsupported, match="start it with --attention-statistics"):
        await run_strategies(engine, (strategy,), request.prompt, request.sampling)
    assert engine.history == []


def test_workers_of_vllm_get_the_file() -> None:
    settings = VllmSettings("model", attention_statistics=Path("/folder/s.safetensors"))
    assert build_engine_args(settings, 100, True)["additional_config"][STATISTICS_KEY] == "/folder/s.safetensors"
    assert STATISTICS_KEY not in build_engine_args(VllmSettings("model"), 100, True)["additional_config"]
    assert EngineSettings("model").attention_statistics is None
