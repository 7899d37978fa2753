"""The validation of input files leaves the interpreter to the event loop."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from server.batch import jsonl, runner
from server.batch.progress import build_batch_error
from server.schemas import base
from tests.server.batch.harness import CHAT, make_line, wait_for_status
from tests.server.conftest import StartServer


def count_reads() -> int:
    """Count the calls with which this process has read."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["syscr"])


def test_file_is_validated_with_few_releases_of_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waits for the interpreter misses short releases, and each one begins its wait anew."""
    file, lines = tmp_path / "input.jsonl", 20_000
    file.write_text("\n".join(make_line(number, messages=[]) for number in range(lines)))

    def refuse_random_numbers() -> None:
        raise AssertionError("the system's random numbers release the interpreter")

    monkeypatch.setattr(base, "uuid4", refuse_random_numbers)
    before = count_reads()
    assert jsonl.validate_file(file, CHAT, 1 << 20) == (lines, [])
    assert count_reads() - before < 100  # 8 kB at a time would be more than 200


async def test_few_files_are_validated_at_a_time(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def validate_slowly(*_: Any) -> tuple[int, list[Any]]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return 0, [build_batch_error("empty_file", "The file has no lines.")]

    monkeypatch.setattr(runner, "validate_file", validate_slowly)
    keys = [f"key-{number}" for number in range(6)]
    server = await start_server(api_keys=",".join(keys))
    clients = [server.openai.with_options(api_key=key) for key in keys]
    batches = []
    for client in clients:
        file = await client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
        batches.append(await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h"))
    for key, batch in zip(keys, batches, strict=True):
        server.openai.api_key = key
        assert (await wait_for_status(server, batch)).status == "failed"
    assert most == runner.VALIDATION_THREADS
