"""Engines on a tiny random model and on the embedded model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import structlog

from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.multimodal.config import load_config
from decoding.pipeline.attention_statistics import write_attention_statistics
from tests.decoding.hf_engine.harness import FakeMatcher, make_image
from tests.decoding.hf_engine.reference import Reference
from tests.decoding.naive_reference import draw_attention_statistics
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


@pytest.fixture
def coco_images(tmp_path: Path) -> Path:
    """Write two images under names as COCO has them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (1, 2):
        make_image(number).visible.save(folder / f"COCO_val2014_{number:012d}.png")
    return folder


def run_engine(model: Path, **settings: Any) -> Iterator[HFEngine]:
    engine = start_engine(model, **settings)
    yield engine
    asyncio.run(engine.close())


def write_drawn_statistics(model: Path, folder: Path) -> Path:
    """Write the attention statistics that `draw_attention_statistics` draws for a model."""
    config = load_config(str(model)).get_text_config()
    hallucinated, real = draw_attention_statistics(config.num_hidden_layers, config.num_attention_heads)
    write_attention_statistics(file := folder / "statistics.safetensors", hallucinated, real)
    return file


def start_engine(model: Path, **settings: Any) -> HFEngine:
    with TemporaryDirectory() as folder:
        statistics = write_drawn_statistics(model, Path(folder))
        files = {"attention_statistics": statistics, "vectors": write_vectors(model)}
        engine = HFEngine(HFSettings(str(model), device="cpu", **files | settings))
        asyncio.run(engine.start())
    engine.matcher_service.matcher = FakeMatcher()  # type: ignore[assignment]
    return engine
