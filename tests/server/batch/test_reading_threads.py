"""Threads that read the files of batches leave the interpreter to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.batch import line_workers, results, runner, validation
from server.batch.validation import validate_file
from server.schemas import base
from tests.server.batch.harness import CHAT, create_batch, make_line, run_steps, wait_for_status
from tests.server.conftest import StartServer, wait_until


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
    assert run_steps(validate_file(file, CHAT, 1 << 20)) == (lines, [])
    assert count_reads() - before < 100  # 8 kB at a time would be more than 200


class SlowCall:
    """Replaces a function. Its calls wait for `go_on`, and are counted."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.go_on = threading.Event()
        self.running = self.most = 0
        self._function = function
        self._lock = threading.Lock()

    def __call__(self, *values: Any) -> Any:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.go_on.wait(10)
        with self._lock:
            self.running -= 1
        return self._function(*values)


@pytest.mark.parametrize(
    ("module", "name", "threads"),
    [
        (validation, "parse_line", runner.VALIDATION_THREADS),
        (line_workers, "parse_validated_line", runner.READING_THREADS),
        (results, "recover_finished_ids", runner.READING_THREADS),
    ],
)
async def test_few_threads_read_the_batches_of_all_keys(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, threads: int
) -> None:
    slow = SlowCall(getattr(module, name))
    monkeypatch.setattr(module, name, slow)
    keys = [f"key-{number}" for number in range(6)]
    # A line of each key may be read at the same time.
    server = await start_server(api_keys=",".join(keys), batch_requests=6, key_share=0.1)
    batches = []
    for key in keys:
        server.openai.api_key = key
        batches.append(await create_batch(server, make_line(1)))
    await wait_until(lambda: slow.running >= threads)
    await asyncio.sleep(0.2)  # in which further threads would come
    slow.go_on.set()
    for key, batch in zip(keys, batches, strict=True):
        server.openai.api_key = key
        assert (await wait_for_status(server, batch)).status == "completed"
    assert slow.most == threads
