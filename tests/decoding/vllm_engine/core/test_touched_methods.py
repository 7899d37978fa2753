"""`install/vllm_changes.py` lists every method of vLLM that the engine overrides or wraps."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from decoding.vllm_engine.worker.early_exit_tap import TAPPED_LAYERS
from decoding.vllm_engine.worker.model_runner_patch import PATCHES
from install.vllm_changes import METHODS, find_method, read_source


def test_listed_methods_exist() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    release = Path(spec.origin).parents[1]
    for file, names in METHODS.items():
        source = read_source(release, file)
        assert source is not None, file
        assert [name for name in names if find_method(source, name) is None] == []


@pytest.mark.filterwarnings("default")
def test_overridden_and_wrapped_methods_are_listed() -> None:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler

    from decoding.vllm_engine.core.async_scheduler import GangAsyncScheduler
    from decoding.vllm_engine.frontend.engine_request_builder import MainSamplingParams

    listed = {name for names in METHODS.values() for name in names}
    ours = {
        name for kind in GangAsyncScheduler.__mro__ if not kind.__module__.startswith("vllm") for name in vars(kind)
    }
    overridden = {f"Scheduler.{name}" for name in ours & set(vars(Scheduler)) if callable(vars(Scheduler)[name])}
    assert "Scheduler.schedule" in overridden
    tapped = {".".join(name.rsplit(".", 2)[1:]) for name in TAPPED_LAYERS}
    ours = {name for name in vars(MainSamplingParams) if not name.startswith("__")}
    overridden |= {f"SamplingParams.{name}" for name in ours if callable(vars(SamplingParams).get(name))}
    assert "SamplingParams._validate_structured_outputs" in overridden
    assert overridden | tapped | {f"GPUModelRunner.{name}" for name in PATCHES} <= listed
