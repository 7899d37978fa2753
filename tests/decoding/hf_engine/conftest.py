"""Engines on a tiny random model and on the embedded model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from tests.decoding.hf_engine.harness import FakeMatcher
from tests.decoding.hf_engine.reference import Reference
from tests.decoding.steering_vectors import write_vectors

EMBEDDED = Path(__file__).parents[3] / "embedded" / "model"


@pytest.fixture(scope="session", params=["tiny", "embedded"])
def model(request: pytest.FixtureRequest, tiny: Path) -> Path:
    return tiny if request.param == "tiny" else EMBEDDED


@pytest.fixture(scope="session")
def either(model: Path) -> Iterator[HFEngine]:
    """Start an engine on each model in turn."""
    yield from run_engine(model)


@pytest.fixture(scope="session")
def reference(model: Path) -> Reference:
    return Reference(model, FakeMatcher().relevance)


@pytest.fixture(scope="session")
def reference_of_tiny(tiny: Path) -> Reference:
    return Reference(tiny, FakeMatcher().relevance)


@pytest.fixture(scope="session")
def embedded() -> Iterator[HFEngine]:
    """Start an engine on the embedded model."""
    yield from run_engine(EMBEDDED)


@pytest.fixture(scope="session")
def engine(tiny: Path) -> Iterator[HFEngine]:
    """Start an engine on the tiny model."""
    yield from run_engine(tiny)


@pytest.fixture
def captured_logs() -> Iterator[None]:
    """Capture the engine's log of failures and tracebacks."""
    with structlog.testing.capture_logs():
        yield


def run_engine(model: Path, **settings: Any) -> Iterator[HFEngine]:
    engine = start_engine(model, **settings)
    yield engine
    asyncio.run(engine.close())


def start_engine(model: Path, **settings: Any) -> HFEngine:
    engine = HFEngine(HFSettings(str(model), device="cpu", vectors=write_vectors(model), **settings))
    asyncio.run(engine.start())
    engine.matcher_service.matcher = FakeMatcher()  # type: ignore[assignment]
    return engine
