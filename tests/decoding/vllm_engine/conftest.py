"""Engines on the embedded model. Each is a process that starts slowly, so that tests share them for the session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from inspect import iscoroutinefunction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio

from tests.decoding.hf_engine.conftest import write_drawn_statistics
from tests.decoding.hf_engine.harness import FakeMatcher
from tests.decoding.steering_vectors import write_vectors

EMBEDDED = Path(__file__).parents[3] / "embedded" / "model"

# vLLM has an environment of its own: `make test-vllm` runs these tests. Files that need no vLLM run everywhere.
HERE = Path(__file__).parent
WITHOUT_VLLM = (
    "core/test_gangs.py",
    "frontend/test_engine_args.py",
    "frontend/test_member_builder.py",
    "frontend/test_selftest.py",
    "test_plugin.py",
    "test_states.py",
    "worker/test_attention_capture.py",
    "worker/test_attention_edits.py",
    "worker/test_early_exit_tap.py",
    "worker/test_image_tokens.py",
    "worker/test_model_runner_patch.py",
    "worker/test_paged_attention.py",
    "worker/test_sampler_hook_runner.py",
    "worker/test_simulated_device.py",
    "worker/test_steering_tap.py",
    "worker/test_step_hook_runner.py",
    "worker/test_token_pruning.py",
    "worker/test_vision_attention_tap.py",
)
if find_spec("vllm") is None:
    collect_ignore = sorted({str(file.relative_to(HERE)) for file in HERE.rglob("test_*.py")} - {*WITHOUT_VLLM})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow vLLM's own warnings, and run all tests in one event loop, to which vLLM's sockets belong."""
    for item in items:
        if HERE in item.path.parents and isinstance(item, pytest.Function) and iscoroutinefunction(item.function):
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


# Chunks of 32 tokens, and a KV cache in which gangs preempt each other.
TIGHT: dict[str, Any] = {
    "context": 256,
    "max_rows": 8,
    "step_tokens": 32,
    "cache_blocks": 15,  # of 32 tokens, one of them unused; three rows with an image grow to 12
    "max_waiting": 1000,
}


async def start_engine(**settings: Any) -> Any:
    """Start a vLLM engine with a fake matcher."""
    from decoding.vllm_engine.engine import VllmEngine
    from decoding.vllm_engine.settings import VllmSettings

    defaults: dict[str, Any] = {"block_tokens": 32, "cache_bytes": 1 << 28}
    model = settings.pop("model", str(EMBEDDED))
    with TemporaryDirectory() as folder:
        defaults["attention_statistics"] = write_drawn_statistics(Path(model), Path(folder))
        defaults["vectors"] = write_vectors(Path(model))
        engine = VllmEngine(VllmSettings(model, **{**defaults, **settings}))
        await engine.start()
    engine.matcher_service.matcher = FakeMatcher()  # type: ignore[assignment]
    return engine


@pytest.fixture(scope="session", autouse=True)
def hidden_compiler() -> Iterator[None]:
    """Hide the C++ compiler from the engines: only a compiled model needs one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "/hidden/compiler")
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def hf_engine() -> AsyncIterator[Any]:
    """Start the transformers engine, which other tests compare with a naive reference."""
    from decoding.hf_engine.engine import HFEngine
    from decoding.hf_engine.settings import HFSettings

    with TemporaryDirectory() as folder:
        files = {
            "attention_statistics": write_drawn_statistics(EMBEDDED, Path(folder)),
            "vectors": write_vectors(EMBEDDED),
        }
        engine = HFEngine(HFSettings(str(EMBEDDED), device="cpu", max_waiting=10_000, **files))
        await engine.start()
    engine.matcher_service.matcher = FakeMatcher()  # type: ignore[assignment]
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def roomy_engine() -> AsyncIterator[Any]:
    """Start a vLLM engine with room for all requests of a test."""
    engine = await start_engine(max_rows=64)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tight_engine() -> AsyncIterator[Any]:
    """Start a vLLM engine in which gangs preempt each other."""
    engine = await start_engine(**TIGHT)
    yield engine
    await engine.close()
