"""Files of batches are read in slices: others are read in between, and the work can be stopped."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from server.batch import jsonl, line_workers, slices, validation
from server.batch.store import BatchStore, get_result_file_ids
from server.errors import StoreFailed
from tests.server.batch.harness import CHAT, create_batch, make_line, run_steps, stop, wait_for_status
from tests.server.conftest import FakeServer, StartServer, wait_until

LINES = [make_line(number) for number in range(9)]
MANY = [make_line(number) for number in range(1500)]
KEYS = "one,two,three,small"  # more large files than there are threads


class SlowParser:
    """Replaces a function that parses lines. A line takes `seconds` and is a slice. The calls are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any = validation, name: str = "parse_line") -> None:
        self.count = 0
        self.seconds = 0.02
        self._parse = getattr(module, name)
        monkeypatch.setattr(slices, "SLICE_SECONDS", 0)
        monkeypatch.setattr(line_workers, "SLICE_SECONDS", 0)
        monkeypatch.setattr(module, name, self)

    def __call__(self, *values: Any) -> Any:
        self.count += 1
        time.sleep(self.seconds)
        return self._parse(*values)


@pytest.fixture
def slow_validation(monkeypatch: pytest.MonkeyPatch) -> SlowParser:
    return SlowParser(monkeypatch)


def test_validation_stops_after_the_last_allowed_line(
    slow_validation: SlowParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MAX_LINES", 5)
    path = tmp_path / "input"
    for lines, count in (([""] * 9, 0), (LINES, 5), ([*LINES[:3], "", "", ""], 3)):
        slow_validation.count = 0
        path.write_text("".join(f"{line}\n" for line in lines))
        total, errors = run_steps(validation.validate_file(path, CHAT, 10_000))
        assert (total, slow_validation.count, [error.code for error in errors]) == (count, count, ["too_many_lines"])


def test_errors_of_a_file_name_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text("\n".join([LINES[0], "nonsense", "", LINES[1], LINES[0], make_line(7, "/v1/completions")]))
    count, errors = run_steps(validation.validate_file(path, CHAT, 10_000))
    problems = [(error.line, error.code) for error in errors]
    assert problems == [(2, "invalid_line"), (5, "duplicate_id"), (6, "mismatched_endpoint")]
    assert count == 5


def test_line_with_two_ids_is_refused(tmp_path: Path) -> None:
    """The result of a line that is refused after a restart has the id at its beginning."""
    path = tmp_path / "input"
    same, other = (make_line(1, user="x" * 20_000)[:-1] + f', "custom_id": "line-{number}"}}' for number in (1, 2))
    for text, codes in ((same, []), (other, [(1, "duplicate_id", "custom_id")])):
        path.write_text(text)
        _, errors = run_steps(validation.validate_file(path, CHAT, 100_000))
        assert [(error.line, error.code, error.param) for error in errors] == codes


def test_validation_keeps_neither_lines_nor_their_ids(tmp_path: Path) -> None:
    """Files of all keys are validated by turns. Ids of 512 characters would take 2 kB each."""
    path = tmp_path / "input"
    lines = [
        json.dumps({"custom_id": f"{number:05}" + "\U0001f600" * 500, "method": "POST", "url": CHAT, "body": {}})
        for number in range(2000)
    ]
    long_line = make_line(1, user="x" * 2_000_000)
    path.write_text("\n".join([*lines, long_line, LINES[2], LINES[3]]))
    tracemalloc.start()
    try:
        steps = validation.validate_file(path, CHAT, 10_000_000)
        for _ in range(2001):
            next(steps)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    steps.close()
    assert kept < 1_500_000  # with the buffer of the file


async def start_large_batches(server: FakeServer) -> dict[str, Batch]:
    batches = {}
    for key in KEYS.split(",")[:-1]:
        server.openai.api_key = key
        batches[key] = await create_batch(server, *MANY)
    return batches


async def assert_small_batch_overtakes(
    server: FakeServer, large: dict[str, Batch], status: str, parser: SlowParser
) -> None:
    """Run a small batch to its end while large ones keep their status. Then cancel these."""
    server.openai.api_key = "small"
    assert (await wait_for_status(server, await create_batch(server, make_line(1)))).status == "completed"
    for key, batch in large.items():
        server.openai.api_key = key
        assert (await server.openai.batches.retrieve(batch.id)).status == status
    parser.seconds = 0
    for key, batch in large.items():
        server.openai.api_key = key
        await server.openai.batches.cancel(batch.id)
        assert (await wait_for_status(server, batch)).status == "cancelled"


async def test_small_file_does_not_wait_for_the_validation_of_large_ones(
    start_server: StartServer, slow_validation: SlowParser
) -> None:
    server = await start_server(api_keys=KEYS)
    large = await start_large_batches(server)
    await assert_small_batch_overtakes(server, large, "validating", slow_validation)
    assert slow_validation.count < len(MANY) * len(large)


def finish_all_but_the_last_line(folder: Path, batch: Batch) -> None:
    """Write the results of an earlier process."""
    results = (
        json.dumps({"id": "x", "custom_id": f"line-{number}", "response": {"status_code": 200}, "error": None})
        for number in range(len(MANY) - 1)
    )
    (folder / get_result_file_ids(batch.id)[0]).write_text("".join(f"{result}\n" for result in results))


@pytest.mark.parametrize(
    ("module", "name"),
    [(line_workers, "parse_validated_line"), (jsonl, "parse_finished_id")],
    ids=["lines", "results"],
)
async def test_small_file_does_not_wait_for_batches_that_are_resumed(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Any, name: str
) -> None:
    with monkeypatch.context() as patch:
        SlowParser(patch, line_workers, "parse_validated_line")
        server = await start_server(api_keys=KEYS, data_dir=tmp_path)
        large = await start_large_batches(server)
        for key, batch in large.items():
            server.openai.api_key = key
            await wait_for_status(server, batch, "in_progress")
        await stop(server)
    for batch in large.values():
        finish_all_but_the_last_line(tmp_path, batch)
    parser = SlowParser(monkeypatch, module, name)
    server = await start_server(api_keys=KEYS, data_dir=tmp_path, batch_requests=2)  # fewer lines than large files
    await assert_small_batch_overtakes(server, large, "in_progress", parser)
    await stop(server)
    assert parser.count < len(MANY) * len(large)


async def test_validation_ends_with_the_server_and_begins_anew(
    start_server: StartServer, slow_validation: SlowParser, tmp_path: Path
) -> None:
    server = await start_server(data_dir=tmp_path)
    batch = await create_batch(server, *MANY[:300])
    await wait_until(lambda: slow_validation.count > 0)
    await stop(server)
    slow_validation.seconds = 0
    count = slow_validation.count
    assert count < 300
    server = await start_server(data_dir=tmp_path)
    batch = await wait_for_status(server, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 300
    assert slow_validation.count == count + 300


async def test_batch_that_expires_during_its_validation_is_expired(
    start_server: StartServer, slow_validation: SlowParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    batch = await create_batch(server, *MANY)
    await wait_until(lambda: slow_validation.count > 0)
    monkeypatch.setattr(line_workers.time, "time", lambda now=time.time: now() + 86_401)
    batch = await wait_for_status(server, batch)
    assert (batch.status, batch.output_file_id) == ("expired", None)
    assert batch.errors is not None
    assert [error.code for error in batch.errors.data or ()] == ["batch_expired"]
    assert slow_validation.count < len(MANY)


async def test_batch_that_is_cancelled_in_the_last_slice_is_cancelled(
    start_server: StartServer, slow_validation: SlowParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file has an error, which comes too late to fail the batch."""
    monkeypatch.setattr(slices, "SLICE_SECONDS", 60)
    slow_validation.seconds = 0.5
    server = await start_server()
    batch = await create_batch(server, LINES[0], "nonsense")
    await wait_until(lambda: slow_validation.count > 0)
    await server.openai.batches.cancel(batch.id)
    batch = await wait_for_status(server, batch)
    assert (batch.status, batch.errors) == ("cancelled", None)


@pytest.mark.parametrize("method", ["get_batch", "update_batch"])
@pytest.mark.usefixtures("retry_soon")
async def test_validation_does_not_begin_anew_after_a_failure_of_the_database(
    start_server: StartServer, slow_validation: SlowParser, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    original: Callable[..., Awaitable[Batch]] = getattr(BatchStore, method)
    failures = 0

    async def fail_sometimes(*values: Any, **fields: Any) -> Any:
        nonlocal failures
        if slow_validation.count and failures < 5:
            failures += 1
            raise StoreFailed("The database is locked.")
        return await original(*values, **fields)

    server = await start_server()
    monkeypatch.setattr(BatchStore, method, fail_sometimes)
    batch = await create_batch(server, *LINES)
    await wait_until(lambda: failures == 5)
    assert (await wait_for_status(server, batch)).status == "completed"
    assert slow_validation.count == len(LINES)
