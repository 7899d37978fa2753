from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from eval.benchmarks.mme.score import SUBTASKS
from tests.eval import coco_data
from tests.eval.cli_driver import reply_by_hash
from tests.eval.fake_server import ScriptedServer, start_server
from tests.eval.scene_data import write_scenes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with start_server(ScriptedServer(reply_by_hash)) as running:
        yield running


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return coco_data.write_annotations(tmp_path / "annotations")


@pytest.fixture
def synonyms(tmp_path: Path) -> Path:
    (tmp_path / "synonyms.txt").write_text(coco_data.SYNONYMS)
    return tmp_path / "synonyms.txt"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two images with two questions in every subtask of MME."""
    for name in SUBTASKS:
        folder = tmp_path / name
        folder.mkdir()
        for at in range(2):
            Image.new("RGB", (8, 8), (at, 0, 0)).save(folder / f"{at}.png")
            (folder / f"{at}.txt").write_text(f"Is it {name} {at}?\tYes\nIs it not?\tNo\n")
    return tmp_path


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use few resamples, because no test depends on their number."""
    monkeypatch.setattr("eval.core.statistics.RESAMPLES", 200)
