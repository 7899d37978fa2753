"""The commands `build pope` and `fetch chair`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from eval.benchmarks.pope.builder import SPLITS
from eval.cli.data import SYNONYMS_SHA256, download_file
from eval.errors import EvaluationError
from tests.eval.benchmarks.pope.test_builder import IMAGES
from tests.eval.cli_driver import run_process, write_jsonl
from tests.eval.coco_data import OFFICIAL_SYNONYMS

CONTENT = b"person, man\n"


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "synonyms.txt").write_bytes(
        OFFICIAL_SYNONYMS.read_bytes() if OFFICIAL_SYNONYMS.exists() else CONTENT
    )
    (tmp_path / "site" / "other.txt").write_bytes(CONTENT)
    server = HTTPServer(("127.0.0.1", 0), partial(SilentHandler, directory=str(tmp_path / "site")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_build_pope_writes_three_splits(tmp_path: Path) -> None:
    objects = write_jsonl(
        tmp_path / "o.jsonl", [{"image": image.image, "objects": list(image.objects)} for image in IMAGES]
    )
    process = run_process("build", "pope", "--objects", objects, "--out", tmp_path / "pope", "--seed", "3")
    assert process.returncode == 0, process.stderr
    for split in SPLITS:
        rows = [json.loads(line) for line in (tmp_path / "pope" / f"{split}.jsonl").read_text().splitlines()]
        assert [list(row) for row in rows] == [["question_id", "image", "text", "label"]] * 18
        assert [row["question_id"] for row in rows] == list(range(1, 19))
        assert rows[8] | {"question_id": 0} == {
            "question_id": 0,
            "image": "b.jpg",
            "text": "Is there an oven in the image?",
            "label": "yes",
        }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "x.jpg"}, ':2: field "objects": is missing'),
        ({"image": "x.jpg", "objects": "cup"}, ':2: field "objects": must be a list of strings'),
        ({"image": "x.jpg", "objects": ["cup", 3]}, ':2: field "objects": must be a list of strings'),
        ({"image": "x.jpg", "objects": ["cup", ""]}, ':2: field "objects": has an empty name'),
        ({"image": 7, "objects": ["cup"]}, ':2: field "image": must be a string, not a number'),
    ],
)
def test_build_pope_refuses_invalid_objects(tmp_path: Path, row: dict[str, object], message: str) -> None:
    objects = write_jsonl(tmp_path / "o.jsonl", [{"image": "a.jpg", "objects": ["a", "b", "c"]}, row])
    process = run_process("build", "pope", "--objects", objects, "--out", tmp_path / "pope")
    assert (process.returncode, process.stderr) == (1, f"error: {objects}{message}\n")
    assert not (tmp_path / "pope").exists()


def test_a_download_with_the_expected_hash_is_written(site: str, tmp_path: Path) -> None:
    download_file(f"{site}/other.txt", hashlib.sha256(CONTENT).hexdigest(), tmp_path / "new" / "file.txt")
    assert (tmp_path / "new" / "file.txt").read_bytes() == CONTENT
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_another_hash_is_refused_and_the_old_file_stays(site: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(EvaluationError, match="is not the expected file"):
        download_file(f"{site}/other.txt", SYNONYMS_SHA256, tmp_path / "file.txt")
    assert (tmp_path / "file.txt").read_text() == "old"


def test_a_failed_download_raises_an_error(site: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be downloaded"):
        download_file(f"{site}/none.txt", SYNONYMS_SHA256, tmp_path / "file.txt")
    with pytest.raises(EvaluationError, match="cannot be downloaded"):
        download_file("http://127.0.0.1:9/x", SYNONYMS_SHA256, tmp_path / "file.txt")


@pytest.mark.skipif(not OFFICIAL_SYNONYMS.exists(), reason="the official table of synonyms is missing")
def test_fetch_chair_checks_the_digest(site: str, tmp_path: Path) -> None:
    process = run_process("fetch", "chair", "--out", tmp_path / "s.txt", "--url", f"{site}/synonyms.txt")
    assert (process.returncode, process.stdout) == (0, f"{tmp_path / 's.txt'}\n")
    process = run_process("fetch", "chair", "--out", tmp_path / "s.txt", "--url", f"{site}/other.txt")
    assert process.returncode == 1
    assert "SHA-256" in process.stderr
