from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eval import scenes
from tests.eval.fake_server import FakeServer, serving
from tests.eval.runs import talkative


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return scenes.make(tmp_path / "scenes")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(talkative)) as running:
        yield running


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to tell that they are used."""
    monkeypatch.setattr("eval.statistics.RESAMPLES", 200)
