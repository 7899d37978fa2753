"""A bulk job on a local Ray cluster whose engines and whose driver are killed, beside the same job left alone.

    python -m bench.robustness.bulk_job --pictures 200

Fresh pictures are drawn. A job against a running server gives the reference rows, and the throughput of an engine
behind its server. A job with one engine of its own gives the throughput to compare. In a third job with two engines, an
engine is killed twice and the driver once, and the same command then ends the job. Its rows must equal the reference.

    python -m bench.robustness.bulk_job --pictures 5000 --only memory

measures the driver's memory instead, in jobs with two engines on a tenth of the pictures and on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from bench.harness.docs_page import describe_machine
from bench.harness.server_process import ServerProcess
from embedded.data import coco_annotations, renderer, scene_dataset, scene_sampler
from eval.bulk.inspection import iterate_rows

SEED = 2024
TIMEOUT = 36_000.0  # seconds of one job
OPTIONS = ["--prompt", "Describe this image.", "--strategy", "verify", "--concurrency", "16"]
COMPARED = {
    "key": True,
    "id": True,
    "answer": True,
    "error": True,
    "claims": {"__all__": {"text", "start", "end", "question", "action"}},
}


class JobProcess:
    """A job in a process of its own, with the peak of its memory."""

    def __init__(self, out: Path, arguments: Sequence[str], ray_folder: Path) -> None:
        self.out = out
        self.peak_megabytes = 0.0
        environment = os.environ | {"RAY_TMPDIR": str(ray_folder), "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-m", "eval.bulk", "run", *arguments, "--out", str(out)]
        self.handle = subprocess.Popen(command, env=environment | {"ONLYSEEN_DEVICE": "cpu"})
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def wait_for_rows(self, count: int) -> None:
        """Wait until the job has stored rows. Raises `RuntimeError` if it ends before."""
        while count_rows(self.out) < count:
            if self.handle.poll() is not None:
                raise RuntimeError(f"the job has ended with {count_rows(self.out)} of {count} rows")
            time.sleep(0.05)

    def kill_engine(self) -> None:
        """Kill one of the engines, as soon as one runs a batch."""
        while not self._kill_busy_engine():
            time.sleep(0.05)

    def _kill_busy_engine(self) -> bool:
        for child in psutil.Process(self.handle.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                if "EngineWorker" in " ".join(child.cmdline()):
                    child.kill()
                    return True
        return False

    def kill_driver(self) -> None:
        """Kill the driver, and what it has left of the cluster."""
        children = psutil.Process(self.handle.pid).children(recursive=True)
        self.handle.send_signal(signal.SIGKILL)
        self.handle.wait()
        for child in children:
            if child.is_running():
                child.kill()

    def finish(self) -> dict[str, Any]:
        """Wait for the end of the job, and return its summary."""
        if self.handle.wait(TIMEOUT):
            raise RuntimeError(f"the job has failed with status {self.handle.returncode}")
        summary: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return summary

    def _watch_memory(self) -> None:
        while self.handle.poll() is None:
            try:
                self.peak_megabytes = max(self.peak_megabytes, psutil.Process(self.handle.pid).memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.2)


def count_rows(out: Path) -> int:
    """Count the stored rows of a job that may be running."""
    file = out / "state.sqlite"
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM done").fetchone()[0])
    except sqlite3.OperationalError:  # before the tables are there
        return 0


def measure_rate(job: JobProcess, total: int) -> float:
    """Measure the rows per second from the first fifth to the end, without the start of engines."""
    job.wait_for_rows(total // 5)
    first, start = count_rows(job.out), time.monotonic()
    job.wait_for_rows(total)
    return (total - first) / (time.monotonic() - start)


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Read all rows of a job by key, without what depends on the clock or, in the last digits, on the other rows."""
    rows = sorted(iterate_rows(out), key=lambda row: row.key)
    return [row.model_dump(include=COMPARED) for row in rows]


@contextmanager
def draw_pictures(folder: Path, count: int) -> Iterator[Path]:
    """Draw fresh pictures."""
    dataset = scene_dataset.make_dataset(
        folder / "dataset", count, SEED, scene_sampler.SHIFTED_PRIOR, renderer.FAR_VIEW, processes=1
    )
    coco_annotations.write_scenes(folder, dataset)
    yield folder / "images"


def run_killed(out: Path, arguments: Sequence[str], ray_folder: Path, total: int) -> float:
    """Run the job whose engines and driver are killed. Returns the peak of the driver's memory in megabytes."""
    job = JobProcess(out, arguments, ray_folder)
    for share in (0.2, 0.4):
        job.wait_for_rows(int(share * total))
        job.kill_engine()
    job.wait_for_rows(int(0.6 * total))
    job.kill_driver()
    repeated = JobProcess(out, arguments, ray_folder)
    repeated.finish()
    return max(job.peak_megabytes, repeated.peak_megabytes)


def measure(folder: Path, pictures: Path, total: int) -> dict[str, Any]:
    """Run the three jobs.

    Args:
        folder: An empty folder.
        pictures: The pictures.
        total: Their number.

    Returns:
        The figures.
    """
    common = [str(pictures), *OPTIONS]
    with ServerProcess() as server:
        alone = JobProcess(folder / "alone", [*common, "--base-url", server.url], folder / "ray")
        served_rate = measure_rate(alone, total)
        alone.finish()
    own = JobProcess(folder / "own", [*common, "--engines", "1"], folder / "ray")
    own_rate = measure_rate(own, total)
    own.finish()
    killed_megabytes = run_killed(folder / "killed", [*common, "--engines", "2"], folder / "ray", total)
    reference, killed = read_rows(folder / "alone"), read_rows(folder / "killed")
    return {
        "pictures": total,
        "rows of the killed job": len(killed),
        "keys of the killed job": len({row["key"] for row in killed}),
        "equal to the job left alone": killed == reference,
        "rows/s behind a server": round(served_rate, 3),
        "rows/s with an own engine": round(own_rate, 3),
        "ratio": round(own_rate / served_rate, 3),
        "driver MB against a server": round(alone.peak_megabytes),
        "driver MB with engines": round(killed_megabytes),
    } | describe_machine()


def measure_memory(folder: Path, pictures: Path, total: int) -> dict[str, Any]:
    """Run a job on a tenth of the pictures and one on all of them.

    Args:
        folder: An empty folder.
        pictures: The pictures.
        total: Their number.

    Returns:
        The peaks of the driver's memory.

    Raises:
        RuntimeError: A job has ended without all of its rows.
    """
    first = folder / "first"
    first.mkdir()
    for picture in sorted(pictures.iterdir())[: total // 10]:
        (first / picture.name).symlink_to(picture)
    figures: dict[str, Any] = {}
    for name, inputs, count in (("tenth", first, total // 10), ("all", pictures, total)):
        job = JobProcess(folder / name, [str(inputs), *OPTIONS, "--engines", "2"], folder / "ray")
        job.finish()
        if count_rows(job.out) != count:
            raise RuntimeError(f"the job has ended with {count_rows(job.out)} of {count} rows")
        figures[f"driver MB with {count} pictures"] = round(job.peak_megabytes)
    return figures | describe_machine()


def main() -> None:
    """Draw pictures, run the jobs and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--only", choices=("memory",), help="measure the driver's memory, without killing anything")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bulk-") as name:
        folder = Path(name)
        (folder / "ray").mkdir()
        with draw_pictures(folder / "scenes", arguments.pictures) as pictures:
            run = measure_memory if arguments.only else measure
            print(json.dumps(run(folder, pictures, arguments.pictures), indent=1))


if __name__ == "__main__":
    main()
