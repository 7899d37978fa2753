"""Faults of the batch store: two servers on one folder, a full disk, kill -9, a damaged line and parallel uploads.

python -m bench.robustness.batch_faults

The full disk is a file system of 600 kB, which only root can mount.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.harness.server_process import ServerProcess

LINES = 120
DISK_KB = 600
TIMEOUT = 300.0  # seconds
START_TIMEOUT = 60.0  # seconds after which a second server has not been refused
ENDED = ("completed", "failed", "cancelled", "expired")


def build_batch(lines: int = LINES) -> bytes:
    """Build the input file of a batch of short questions without images."""
    body = {"model": "onlyseen-tiny", "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "Please describe a dog."}]
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    return b"".join(json.dumps({"custom_id": f"line-{number}", **line}).encode() + b"\n" for number in range(lines))


class BatchClient:
    """A client of the routes for files and batches of one server."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/v1", timeout=60)

    def __enter__(self) -> BatchClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def upload(self, content: bytes) -> httpx.Response:
        return self.http.post("/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"})

    def start_batch(self) -> str:
        """Start a batch and return its id."""
        file_id = self.upload(build_batch()).json()["id"]
        fields = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return str(self.http.post("/batches", json=fields).json()["id"])

    def wait_for(self, batch_id: str, is_reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the batch object fulfils a condition or the batch has ended.

        Args:
            batch_id: Id of the batch.
            is_reached: The condition.

        Returns:
            The batch object.

        Raises:
            TimeoutError: Neither happens in time.
        """
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            batch: dict[str, Any] = self.http.get(f"/batches/{batch_id}").json()
            if batch.get("status") in ENDED or is_reached(batch):
                return batch
            time.sleep(0.05)
        raise TimeoutError("the batch does not go on")

    def read_ids(self, file_id: str | None) -> list[str]:
        """Return the custom_ids in a file of results, or none without a file."""
        lines = self.http.get(f"/files/{file_id}/content").content.splitlines() if file_id else []
        return [json.loads(line)["custom_id"] for line in lines]

    def describe_end(self, batch_id: str) -> str:
        """Wait for the end of a batch, and format its status and its results."""
        batch = self.wait_for(batch_id, lambda _: False)
        ids = self.read_ids(batch["output_file_id"])
        return f"{batch['status']}, {len(set(ids))} of {LINES} answers, {len(ids) - len(set(ids))} twice"


def count_completed(batch: dict[str, Any]) -> int:
    return int(batch.get("request_counts", {}).get("completed", 0))


def get_error_code(batch: dict[str, Any]) -> str | None:
    """Return the code of the reason for which a batch waits."""
    return batch["errors"]["data"][0]["code"] if batch.get("errors") else None


def fill_disk(folder: Path) -> Path:
    """Fill a disk, and return the file to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return filler


def check_two_servers(folder: Path) -> str:
    """Start a second server on the folder of a running one that works on a batch."""
    with ServerProcess("--data-dir", str(folder)) as server, BatchClient(server.url) as client:
        batch_id = client.start_batch()
        started_at = time.monotonic()
        command = [sys.executable, "-m", "server", "--port", "0", "--device", "cpu", "--data-dir", str(folder)]
        try:
            second = subprocess.run(command, capture_output=True, timeout=START_TIMEOUT)
            refusal = f"exit code {second.returncode} after {time.monotonic() - started_at:.1f} s"
        except subprocess.TimeoutExpired:
            refusal = "runs"
        return f"second server: {refusal}; batch: {client.describe_end(batch_id)}"


def check_full_disk(folder: Path) -> str:
    """Fill the disk while a batch runs, and free it."""
    with mount_disk(folder), ServerProcess("--data-dir", str(folder)) as server, BatchClient(server.url) as client:
        batch_id = client.start_batch()
        client.wait_for(batch_id, lambda batch: count_completed(batch) >= 5)
        filler = fill_disk(folder)
        waiting = client.wait_for(batch_id, lambda batch: bool(batch.get("errors")))
        answers = len(client.read_ids(waiting["output_file_id"]))
        upload = client.upload(b"x" * 50_000).status_code
        filler.unlink()
        return (
            f"{waiting['status']} with {get_error_code(waiting)}, {answers} answers, upload {upload}; "
            f"with space: {client.describe_end(batch_id)}"
        )


def check_cancel_on_full_disk(folder: Path) -> str:
    """Cancel a batch while the disk is full, and free it."""
    with mount_disk(folder), ServerProcess("--data-dir", str(folder)) as server, BatchClient(server.url) as client:
        batch_id = client.start_batch()
        client.wait_for(batch_id, lambda batch: count_completed(batch) >= 5)
        filler = fill_disk(folder)
        waiting = client.wait_for(batch_id, lambda batch: bool(batch.get("errors")))
        stored = len(client.read_ids(waiting["output_file_id"]))
        client.http.post(f"/batches/{batch_id}/cancel")
        waiting = client.wait_for(batch_id, lambda batch: batch.get("status") == "cancelling")
        filler.unlink()
        batch = client.wait_for(batch_id, lambda _: False)
        ids = client.read_ids(batch["output_file_id"])
        is_complete = len(ids) == count_completed(batch) > stored
        kept = "all answers stored" if is_complete else f"{len(ids)} answers of {count_completed(batch)}"
        return f"{waiting['status']} with {get_error_code(waiting)}; with space: {batch['status']}, {kept}"


def check_kills(folder: Path) -> str:
    """Kill the server three times in a batch."""
    batch_id = None
    for kill in range(3):
        with ServerProcess("--data-dir", str(folder)) as server, BatchClient(server.url) as client:
            batch_id = batch_id or client.start_batch()
            client.wait_for(batch_id, lambda batch, least=10 * (kill + 1): count_completed(batch) >= least)
            server.send_signal(signal.SIGKILL)
    with ServerProcess("--data-dir", str(folder)) as server, BatchClient(server.url) as client:
        return client.describe_end(batch_id or "")


def check_damaged_line(folder: Path) -> str:
    """Kill the server in a batch, and overwrite the second result."""
    with ServerProcess("--data-dir", str(folder)) as server, BatchClient(server.url) as client:
        batch_id = client.start_batch()
        client.wait_for(batch_id, lambda batch: count_completed(batch) >= 10)
        server.send_signal(signal.SIGKILL)
    (output,) = folder.glob("file-*-output")
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(lines[0] + bytes(len(lines[1]) - 1) + b"\n" + b"".join(lines[2:]))
    with ServerProcess("--data-dir", str(folder)) as server, BatchClient(server.url) as client:
        return client.describe_end(batch_id)


def check_uploads(folder: Path) -> str:
    """Send eight files of 0.9 MB at once to a server that stores 1 MB."""
    flags = ("--data-dir", str(folder), "--max-data-mb", "1")
    with ServerProcess(*flags) as server, BatchClient(server.url) as client, ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: client.upload(b"x" * 900_000).status_code, range(8)))
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(("file-", "upload-")))
    return f"{statuses.count(200)} stored, {statuses.count(400)} refused, {stored} bytes"


COMPLETE = f"completed, {LINES} of {LINES} answers, 0 twice"
CHECKS: dict[str, tuple[Callable[[Path], str], str]] = {  # name -> the check, and a pattern of the expected outcome
    "two servers on one folder": (check_two_servers, f"second server: exit code 1 .*; batch: {COMPLETE}"),
    "full disk": (
        check_full_disk,
        f"in_progress with storage_unavailable, [1-9][0-9]* answers, upload 503; with space: {COMPLETE}",
    ),
    "full disk, and the batch is cancelled": (
        check_cancel_on_full_disk,
        "cancelling with storage_unavailable; with space: cancelled, all answers stored",
    ),
    "kill -9, three times": (check_kills, COMPLETE),
    "kill -9 and a damaged result": (check_damaged_line, COMPLETE),
    "8 uploads of 0.9 MB, quota 1 MB": (check_uploads, "1 stored, 7 refused, 900000 bytes"),
}


@contextmanager
def mount_disk(folder: Path) -> Iterator[None]:
    """Mount a small file system until the context ends.

    Raises:
        PermissionError: The process cannot mount file systems.
    """
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("not run: only root can mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_check(check: Callable[[Path], str]) -> str:
    """Run a check in a folder of its own, and return its outcome."""
    with tempfile.TemporaryDirectory(prefix="onlyseen-faults-") as folder:
        try:
            return check(Path(folder))
        except Exception as error:  # an outcome like any other
            return f"{type(error).__name__}: {str(error)[:200]}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| fault | outcome |\n|---|---|")
    for name, (check, _) in CHECKS.items():
        print(f"| {name} | {run_check(check)} |", flush=True)


if __name__ == "__main__":
    main()
