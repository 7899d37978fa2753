"""Engines of the job on a local Ray cluster, one of which is killed, give the rows of a running server."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from eval.bulk.cli import app
from eval.bulk.engines import KEY_BYTES, find_last_line, has_key, split_shares
from tests.eval.bulk.pictures import read_rows, write_archive, write_pictures
from tests.eval.cli_driver import ROOT
from tests.server.harness import EMBEDDED_DIR
from tests.server.harness import url as url  # a fixture

PICTURES = 24
FATAL_WIDTH = 77
FATAL_STRATEGY = f"""
import os

from onlyseen import Strategy


class Fatal(Strategy):
    name = "fatal"
    paper = "none"

    def prepare(self, request):
        if any(image.size[0] == {FATAL_WIDTH} for image in request.prompt.images):
            os._exit(1)
        return request
"""

__all__ = ["url"]  # a fixture


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    scenes = sorted((EMBEDDED_DIR / "scenes" / "images").glob("*.png"))[:PICTURES]
    (tmp_path / "in").mkdir()
    for scene in scenes:
        shutil.copy(scene, tmp_path / "in")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "in"


@pytest.fixture
def ray_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder  # not pytest's folder: its name is too long for Ray's sockets


def build_arguments(pictures: Path, out: Path, *arguments: str) -> list[str]:
    sampling = ("--prompt", "Describe this image.", "--strategy", "verify", "--max-tokens", "40")
    return ["run", str(pictures), "--out", str(out), "--format", "jsonl", *sampling, *arguments]


def count_rows(out: Path) -> int:
    """Count the stored rows while the job runs."""
    file = out / "state.sqlite"
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM done").fetchone()[0])
    except sqlite3.OperationalError:  # before the tables are there
        return 0


def find_workers(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(job.pid).children(recursive=True)
    workers = []
    for child in children:
        with suppress(psutil.Error):  # it has ended meanwhile
            if "EngineWorker" in " ".join(child.cmdline()):
                workers.append(child)
    return workers


def build_environment(folder: str, *packages: Path) -> dict[str, str]:
    """Build the environment of a job with a Ray cluster in a folder, and packages that are not installed."""
    settings = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "ONLYSEEN_DEVICE": "cpu"}
    return os.environ | settings | {"PYTHONPATH": os.pathsep.join(map(str, [*packages, ROOT]))}


def run_and_kill_worker(command: list[str], out: Path, folder: str) -> subprocess.Popen[bytes]:
    """Run a job, and kill an engine when the first rows are stored."""
    environment = build_environment(folder)
    with open(f"{folder}/log", "wb") as log, subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log) as job:
        deadline = time.monotonic() + 300
        while count_rows(out) < 3 and job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert job.poll() is None, Path(folder, "log").read_text()
        while not (workers := find_workers(job)):  # Ray names a process after its task while one runs
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers[0].kill()
        job.wait(300)
    assert job.returncode == 0, Path(folder, "log").read_text()
    return job


def split_rows(out: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Split the rows of a job into texts and probabilities. The last digits of these depend on the other rows."""
    rows, probabilities = read_rows(out), []
    for row in rows:
        probabilities += [claim.pop("probability") for claim in row["claims"] or ()]
    return [{name: row[name] for name in ("key", "id", "answer", "claims", "error", "model")} for row in rows], (
        probabilities
    )


def test_killed_engine_loses_and_doubles_no_row(
    pictures: Path,
    tmp_path: Path,
    url: str,
    ray_folder: str,
) -> None:
    pytest.importorskip("pyarrow")
    engines = ("--engines", "2", "--cpus-per-engine", "0.5", "--concurrency", "2")
    command = [sys.executable, "-m", "eval.bulk", *build_arguments(pictures, tmp_path / "own", *engines)]
    run_and_kill_worker(command, tmp_path / "own", ray_folder)
    rows, probabilities = split_rows(tmp_path / "own")
    assert len(rows) == PICTURES + 1
    result = CliRunner().invoke(app, build_arguments(pictures, tmp_path / "served", "--base-url", url))
    assert result.exit_code == 0, result.output
    served_rows, served_probabilities = split_rows(tmp_path / "served")
    assert rows == served_rows
    assert probabilities == pytest.approx(served_probabilities, abs=1e-3)


def test_an_answer_of_which_every_sentence_is_dropped_is_no_error(pictures: Path, tmp_path: Path, url: str) -> None:
    (pictures / "bad.png").unlink()
    arguments = ["--base-url", url, "--strategy", "verify:threshold=1", "--limit", "2"]
    result = CliRunner().invoke(app, build_arguments(pictures, tmp_path / "out", *arguments))
    assert result.exit_code == 0, result.output
    assert [(row["answer"], row["error"]) for row in read_rows(tmp_path / "out")] == [("", None)] * 2


def write_fatal_strategy(folder: Path) -> Path:
    """Write a package with a strategy that ends the engine's process for pictures of some width."""
    metadata = folder / "fatal-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fatal\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[onlyseen.strategies]\nfatal = fatal:Fatal\n")
    (folder / "fatal.py").write_text(FATAL_STRATEGY)
    return folder


def test_a_picture_that_kills_every_engine_is_a_row_with_an_error(tmp_path: Path, ray_folder: str) -> None:
    pytest.importorskip("pyarrow")
    pictures = write_pictures(tmp_path / "in", 4)
    for name, width in (("fatal.png", FATAL_WIDTH), ("good.png", FATAL_WIDTH + 1)):
        Image.new("RGB", (width, 40), "red").save(pictures / name)
    arguments = ["run", str(pictures), "--out", str(tmp_path / "out"), "--format", "jsonl", "--prompt", "Describe."]
    arguments += ["--strategy", "fatal", "--max-tokens", "5", "--engines", "1", "--concurrency", "4"]
    environment = build_environment(ray_folder, write_fatal_strategy(tmp_path / "package"))
    job = subprocess.run([sys.executable, "-m", "eval.bulk", *arguments], cwd=ROOT, env=environment, timeout=300)
    assert job.returncode == 0
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    assert len(rows) == 6
    assert [name for name, row in rows.items() if row["error"] is not None] == ["fatal.png"]
    assert "the engine died 3 times" in rows["fatal.png"]["error"]


def test_shares_have_many_pictures_or_one_other_file(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "in", 300)
    archive = write_archive(tmp_path / "a.tar", 1)
    shares = list(split_shares([pictures, archive]))
    assert [len(share) for share in shares] == [256, 1, 44]
    assert shares[1] == [[bytes(archive), b"a.tar"]]


def test_keys_are_found_in_the_sorted_array() -> None:
    keys = sorted(bytes([number]) * 31 + b"\0" for number in (0, 7, 9))
    done = np.array([key[:KEY_BYTES] for key in keys], dtype=f"S{KEY_BYTES}")
    assert [has_key(done, (bytes([number]) * 32).hex()) for number in (0, 7, 8, 9, 255)] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert not has_key(done[:0], keys[0].hex())


def test_error_of_an_actor_is_its_last_line() -> None:
    assert find_last_line(RuntimeError("trace\n  File x\nServerError: no strategy\n\n")) == "ServerError: no strategy"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--engines", "1", "--base-url", "http://x"), "choose one"),
        (("--engine-args", "--engine vllm"), "need --engines"),
        (("--engines", "1", "--limit", "3"), "--limit does not work"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    pictures: Path, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    pytest.importorskip("pyarrow")
    result = CliRunner().invoke(app, build_arguments(pictures, tmp_path / "out", *arguments))
    assert problem in str(result.exception)
