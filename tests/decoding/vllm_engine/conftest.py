"""Engines on the embedded model. They live for the session: each is a process, and takes a while to start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.util import find_spec
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.decoding.hf_engine.asking import FakeMatcher

EMBEDDED = Path(__file__).parents[3] / "embedded" / "model"

# vLLM has an environment of its own: `make test-vllm` runs these. What needs no vLLM is tested everywhere.
WITHOUT_VLLM = ("test_gangs.py", "test_memories.py", "test_mixing.py", "test_refusals.py")
if find_spec("vllm") is None:
    collect_ignore = [file.name for file in Path(__file__).parent.glob("test_*.py") if file.name not in WITHOUT_VLLM]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM warns about itself, and its sockets belong to one event loop."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function) and iscoroutinefunction(item.function):
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


# Chunks of 32 tokens, and a cache in which gangs push each other out.
TIGHT: dict[str, Any] = {
    "context": 256,
    "max_rows": 8,
    "step_tokens": 32,
    "cache_blocks": 15,  # of 32 tokens, one of them unused; three rows with a picture grow to 12
    "max_waiting": 1000,
}


async def started(**settings: Any) -> Any:
    from decoding.vllm_engine.engine import VllmEngine
    from decoding.vllm_engine.settings import VllmSettings

    roomy: dict[str, Any] = {"block_tokens": 32, "cache_bytes": 1 << 28}
    engine = VllmEngine(VllmSettings(**{"model": str(EMBEDDED), **roomy, **settings}))
    await engine.start()
    engine._matching.matcher = FakeMatcher()  # type: ignore[assignment]
    return engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def hf() -> AsyncIterator[Any]:
    """The transformers engine, which others have compared with a naive reference."""
    from decoding.hf_engine.engine import HFEngine
    from decoding.hf_engine.settings import HFSettings

    engine = HFEngine(HFSettings(str(EMBEDDED), device="cpu", max_waiting=10_000))
    await engine.start()
    engine._matching.matcher = FakeMatcher()  # type: ignore[assignment]
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def roomy() -> AsyncIterator[Any]:
    """Room for everybody."""
    engine = await started(max_rows=64)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tight() -> AsyncIterator[Any]:
    engine = await started(**TIGHT)
    yield engine
    await engine.close()
