"""Faults of the storage: full disks, quotas, damaged lines, failed databases, and a folder that is in use."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI, NotFoundError
from openai.types import Batch
from structlog.typing import EventDict

from server.batch import jsonl, runner
from server.batch.data_folder import DataFolder, DataFolderError
from server.batch.jsonl import parse_line, recover_finished_ids
from server.batch.store import BatchStore, get_result_file_ids
from tests.server.batch.test_batches import (
    count_lines,
    create_batch,
    make_line,
    read_results,
    stop,
    wait_for_status,
)
from tests.server.conftest import FakeServer, StartServer, wait_until
from tests.server.fakes import FakeEngine

FULL = OSError(errno.ENOSPC, "No space left on device")
LINES = [make_line(number) for number in range(12)]
ALL_IDS = {f"line-{number}" for number in range(12)}


class FaultyCalls:
    """Replaces a function. While `failure` is set, calls after the first `allowed` raise it."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.failure: BaseException | None = None
        self.allowed = 0
        self.failed = 0

    def __call__(self, *values: Any, **fields: Any) -> Any:
        self.allowed -= 1
        if self.failure is not None and self.allowed < 0:
            self.failed += 1
            raise self.failure
        return self.function(*values, **fields)


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "STORE_RETRY_DELAY", 0.05)


@pytest.fixture
def fsync(monkeypatch: pytest.MonkeyPatch) -> FaultyCalls:
    faulty = FaultyCalls(os.fsync)
    monkeypatch.setattr(os, "fsync", faulty)
    return faulty


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> FaultyCalls:
    faulty = FaultyCalls(aiosqlite.Connection.execute_fetchall)

    def call(*values: Any, **fields: Any) -> Any:
        return faulty(*values, **fields)

    monkeypatch.setattr(aiosqlite.Connection, "execute_fetchall", call)
    return faulty


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 600 kB.

    Yields:
        Its folder.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def wait_for_reason(server: FakeServer, batch: Batch) -> str | None:
    """Wait until the batch object has a reason, and return its code. The batch must be unfinished."""
    async with asyncio.timeout(60):  # only against a hang
        while not (batch.errors and batch.errors.data):
            await asyncio.sleep(0.01)
            batch = await server.openai.batches.retrieve(batch.id)
    assert batch.status in ("validating", "in_progress")
    return batch.errors.data[0].code


async def create_batch_that_waits(server: FakeServer, fsync: FaultyCalls) -> Batch:
    """Create a batch of `LINES`, which waits for the disk after two answers."""
    file = await server.openai.files.create(file=("a.jsonl", "\n".join(LINES).encode()), purpose="batch")
    fsync.failure, fsync.allowed = FULL, 3
    batch = await server.openai.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    await wait_for_reason(server, batch)
    return await server.openai.batches.retrieve(batch.id)


async def assert_complete(server: FakeServer, batch: Batch) -> None:
    batch = await wait_for_status(server, batch)
    assert (batch.status, batch.errors) == ("completed", None)
    assert set(await read_results(server, batch.output_file_id)) == ALL_IDS


# One folder, one server


async def test_second_store_on_one_folder_is_refused(tmp_path: Path) -> None:
    first, second = BatchStore(tmp_path, 1000), BatchStore(tmp_path, 1000)
    await first.open()
    with pytest.raises(DataFolderError, match=rf"another server uses {tmp_path} \(process {os.getpid()} on "):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


def test_second_process_on_one_folder_exits_before_it_loads_a_model(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, 1000)
    folder.open()
    command = [sys.executable, "-m", "server", "--port", "0", "--data-dir", str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    folder.close()
    assert second.returncode == 1
    assert second.stderr.startswith(f"data_dir: another server uses {tmp_path} (process {os.getpid()} on ")
    assert second.stdout == ""


def test_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderError, match=r"data_dir: .*/file/data cannot be used: Not a directory"):
        DataFolder(tmp_path / "file" / "data", 1000).open()


async def test_unreadable_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "batches.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(DataFolderError, match=r"the database in .* cannot be opened: file is not a database"):
        await BatchStore(tmp_path, 1000).open()


# Batches lose nothing


async def test_batch_waits_while_its_results_cannot_be_written(start_server: StartServer, fsync: FaultyCalls) -> None:
    server = await start_server(batch_requests=2)
    file = await server.openai.files.create(file=("a.jsonl", "\n".join(LINES).encode()), purpose="batch")
    fsync.failure, fsync.allowed = FULL, 3
    batch = await server.openai.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert await wait_for_reason(server, batch) == "storage_unavailable"
    await wait_until(lambda: fsync.failed > 4)
    requests = len(server.engine.requests)
    assert requests <= 4, "no line is answered again while the disk is full"
    listed = (await server.openai.batches.list()).data[0]
    assert listed.errors is not None
    assert "disk is full" in str(listed.errors.data)
    fsync.failure = None
    await assert_complete(server, batch)
    assert len(server.engine.requests) == len(LINES)


async def test_result_counts_after_it_is_synced(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start_server(batch_requests=1)
    events: list[str] = []
    update_batch, sync = BatchStore.update_batch, os.fsync

    async def record_update(store: BatchStore, *names: str, **fields: Any) -> Batch | None:
        if fields.get("request_counts", {}).get("completed"):
            events.append("count")
        return await update_batch(store, *names, **fields)

    def record_sync(descriptor: int) -> None:
        if "output" in os.readlink(f"/proc/self/fd/{descriptor}"):
            events.append("sync")
        sync(descriptor)

    monkeypatch.setattr(BatchStore, "update_batch", record_update)
    monkeypatch.setattr(os, "fsync", record_sync)
    await wait_for_status(server, await create_batch(server, make_line(1), make_line(2)))
    assert events[:4] == ["sync", "count", "sync", "count"]


async def test_batch_waits_while_the_database_fails(start_server: StartServer, database: FaultyCalls) -> None:
    server = await start_server(FakeEngine(pause=0.02), batch_requests=2)
    batch = await wait_for_status(server, await create_batch(server, *LINES), "in_progress")
    database.failure = sqlite3.OperationalError("disk I/O error")
    database.allowed = 6
    await wait_until(lambda: database.failed > 4)
    response = await server.http.get(f"/v1/batches/{batch.id}")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
    assert int(response.headers["retry-after"]) > 0
    requests = len(server.engine.requests)
    await asyncio.sleep(0.2)
    assert len(server.engine.requests) == requests
    database.failure = None
    await assert_complete(server, batch)
    assert len(server.engine.requests) == len(LINES)


async def test_runner_outlives_a_database_that_fails_at_first(
    start_server: StartServer, tmp_path: Path, database: FaultyCalls
) -> None:
    first = await start_server(FakeEngine(pause=0.05), data_dir=tmp_path)
    batch = await wait_for_status(first, await create_batch(first, *LINES), "in_progress")
    await stop(first)
    database.failure = sqlite3.OperationalError("disk I/O error")
    restarted = await start_server(data_dir=tmp_path)
    await wait_until(lambda: database.failed > 2)
    database.failure = None
    await assert_complete(restarted, batch)


async def test_failed_batch_keeps_its_answers_and_has_a_reason(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(FakeEngine(pause=0.01), batch_requests=1)
    batch = await create_batch(server, *LINES)
    path = server.app.state.batch_store.get_path(get_result_file_ids(batch.id)[0])
    await wait_until(lambda: count_lines(path) >= 2)

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of the server")

    monkeypatch.setattr(runner, "is_over", fail)
    batch = await wait_for_status(server, batch)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [error.code for error in batch.errors.data] == ["internal_error"]
    assert len(await read_results(server, batch.output_file_id)) >= 2


async def test_missing_input_file_fails_the_batch_with_a_reason(start_server: StartServer, tmp_path: Path) -> None:
    first = await start_server(FakeEngine(pause=0.02), data_dir=tmp_path, batch_requests=1)
    batch = await create_batch(first, *LINES)
    answers = tmp_path / get_result_file_ids(batch.id)[0]
    await wait_until(lambda: count_lines(answers) >= 2)
    await stop(first)
    (tmp_path / batch.input_file_id).unlink()
    restarted = await start_server(data_dir=tmp_path)
    batch = await wait_for_status(restarted, batch)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.param) for error in batch.errors.data] == [("input_file_missing", "input_file_id")]
    assert len(await read_results(restarted, batch.output_file_id)) >= 2


DAMAGE = [b"\0" * 300 + b"\n", b'{"custom_id": "line-1", "respo\n', b"[]\n", b'{"custom_id": 1}\n', b"\xff\n"]


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damaged_line_is_answered_again(start_server: StartServer, tmp_path: Path, damage: bytes) -> None:
    first = await start_server(FakeEngine(pause=0.03), data_dir=tmp_path, batch_requests=2)
    batch = await create_batch(first, *LINES)
    answers = tmp_path / get_result_file_ids(batch.id)[0]
    await wait_until(lambda: count_lines(answers) >= 4)
    await stop(first)
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join([lines[0], damage, *lines[2:], lines[0], b'{"custom_id": "line-9", "resp']))
    restarted = await start_server(data_dir=tmp_path)
    await assert_complete(restarted, batch)
    assert count_lines(answers) == len(LINES)
    assert len(restarted.engine.requests) == len(LINES) - (len(lines) - 1)


def make_damaged_results() -> tuple[bytes, list[str]]:
    """Return 30 results, of which some have lost their end, and the ids of the others."""
    lines = [json.dumps({"custom_id": f"{n}", "response": {"text": "x" * (n * 37 % 500)}}) for n in range(30)]
    content = "".join(f"{line if n % 7 else line[:-1]}\n" for n, line in enumerate(lines))
    return content.encode(), [str(n) for n in range(30) if n % 7]


def list_ids(content: bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


def test_recovery_keeps_lines_of_all_lengths(tmp_path: Path) -> None:
    path = tmp_path / "output"
    content, ids = make_damaged_results()
    path.write_bytes(content + b'{"custom_id": "half')
    assert recover_finished_ids(path) == set(ids)
    assert list_ids(path.read_bytes()) == ids
    assert recover_finished_ids(path, {"1", "2"}) == set(ids[2:])
    assert list_ids(path.read_bytes()) == ids[2:]


class Crash(BaseException):
    """The end of the process."""


class CrashingFile:
    """A file. The write with the given number stops in its middle."""

    def __init__(self, file: Any, crash_at: int) -> None:
        self._file = file
        self._left = crash_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def __enter__(self) -> CrashingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._left -= 1
        if self._left < 0:
            self._file.write(data[: len(data) // 2])
            raise Crash
        self._file.write(data)


@pytest.mark.parametrize("crash_at", range(10))
def test_crash_during_recovery_damages_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    path = tmp_path / "output"
    content, ids = make_damaged_results()
    path.write_bytes(content)
    open_file = Path.open

    def open_crashing(path: Path, mode: str = "r", *values: Any) -> Any:
        file = open_file(path, mode, *values)
        return CrashingFile(file, crash_at) if "+" in mode else file

    with monkeypatch.context() as patch, suppress(Crash):
        patch.setattr(Path, "open", open_crashing)
        recover_finished_ids(path)
    assert recover_finished_ids(path) == set(ids)
    assert list_ids(path.read_bytes()) == ids


def test_validation_stops_after_the_last_allowed_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def record(*values: Any) -> Any:
        parsed.append(values)
        return parse_line(*values)

    monkeypatch.setattr(jsonl, "MAX_LINES", 5)
    monkeypatch.setattr(jsonl, "parse_line", record)
    path = tmp_path / "input"
    for lines, count in (([""] * 9, 0), (LINES, 5), ([*LINES[:3], "", "", ""], 3)):
        parsed.clear()
        path.write_text("".join(f"{line}\n" for line in lines))
        total, errors = jsonl.validate_file(path, "/v1/chat/completions", 10_000)
        assert (total, len(parsed), [error.code for error in errors]) == (count, count, ["too_many_lines"])


@pytest.mark.parametrize("change", [{"status": "cancelling"}, {"expires_at": 1}])
async def test_batch_that_ends_on_a_full_disk_keeps_the_answers_in_hand(
    start_server: StartServer, fsync: FaultyCalls, change: dict[str, Any]
) -> None:
    server = await start_server(batch_requests=2)
    batch = await create_batch_that_waits(server, fsync)
    await wait_until(lambda: len(server.engine.requests) == 4)
    await server.app.state.batch_store.update_batch("", batch.id, batch.status, **change)
    await asyncio.sleep(0.2)
    assert (await server.openai.batches.retrieve(batch.id)).status in ("in_progress", "cancelling")
    fsync.failure = None
    batch = await wait_for_status(server, batch)
    assert batch.status == ("cancelled" if "status" in change else "expired")
    assert batch.request_counts is not None
    assert len(await read_results(server, batch.output_file_id)) == batch.request_counts.completed == 4


async def test_answers_of_a_waiting_batch_can_be_fetched(start_server: StartServer, fsync: FaultyCalls) -> None:
    server = await start_server(batch_requests=2)
    batch = await create_batch_that_waits(server, fsync)
    batch = await server.openai.batches.retrieve(batch.id)
    assert batch.status == "in_progress"
    assert len(await read_results(server, batch.output_file_id)) == 2
    assert (await server.openai.batches.list()).data[0].output_file_id == batch.output_file_id
    with pytest.raises(APIStatusError, match="unfinished batch uses this file"):
        await server.openai.files.delete(str(batch.output_file_id))
    fsync.failure = None
    await assert_complete(server, batch)
    file = await server.openai.files.retrieve(str(batch.output_file_id))
    assert file.bytes == len((await server.openai.files.content(file.id)).content)


async def test_file_of_a_running_batch_has_complete_lines(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(pause=0.03), batch_requests=2)
    batch = await create_batch(server, *LINES)
    file_id = get_result_file_ids(batch.id)[0]
    path = server.app.state.batch_store.get_path(file_id)
    await wait_until(lambda: count_lines(path) >= 2)
    while (await server.http.get(f"/v1/files/{file_id}")).status_code == 404:  # noqa: ASYNC110 - it is registered soon
        await asyncio.sleep(0.01)
    with path.open("ab") as file:
        file.write(b'{"custom_id": "half')
    response = await server.http.get(f"/v1/files/{file_id}/content")
    assert response.content.endswith(b"\n")
    assert int(response.headers["content-length"]) == len(response.content)
    assert {json.loads(line)["custom_id"] for line in response.content.splitlines()} < ALL_IDS
    await assert_complete(server, batch)


async def test_input_of_a_cancelling_batch_can_be_deleted(start_server: StartServer, fsync: FaultyCalls) -> None:
    server = await start_server(batch_requests=2)
    batch = await create_batch_that_waits(server, fsync)
    with pytest.raises(APIStatusError, match="unfinished batch uses this file"):
        await server.openai.files.delete(batch.input_file_id)
    await server.openai.batches.cancel(batch.id)
    assert (await server.openai.files.delete(batch.input_file_id)).deleted
    fsync.failure = None
    assert (await wait_for_status(server, batch)).status == "cancelled"


async def test_answer_in_hand_survives_a_dead_engine(
    start_server: StartServer, fsync: FaultyCalls, log_entries: list[EventDict]
) -> None:
    server = await start_server(batch_requests=2)
    batch = await create_batch_that_waits(server, fsync)
    await wait_until(lambda: len(server.engine.requests) == 4)
    server.engine.is_alive = False
    fsync.failure, fsync.allowed = FULL, 1  # one worker continues, and finds the engine dead
    await asyncio.sleep(0.2)
    fsync.failure = None
    await wait_until(lambda: any("interrupted" in entry["event"] for entry in log_entries))
    batch = await server.openai.batches.retrieve(batch.id)
    assert len(await read_results(server, batch.output_file_id)) == 4


async def test_batch_on_a_full_disk_completes_when_there_is_space(start_server: StartServer, small_disk: Path) -> None:
    server = await start_server(FakeEngine(pause=0.02), data_dir=small_disk, batch_requests=2)
    batch = await create_batch(server, *LINES)
    answers = small_disk / get_result_file_ids(batch.id)[0]
    await wait_until(lambda: count_lines(answers) >= 2)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    assert await wait_for_reason(server, batch) == "storage_unavailable"
    refused = await server.http.post("/v1/files", files={"file": b"x" * 50_000}, data={"purpose": "batch"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert not [name for name in os.listdir(small_disk) if name.startswith("upload-")]
    await stop(server)
    restarted = await start_server(data_dir=small_disk)
    assert await wait_for_reason(restarted, batch) == "storage_unavailable"
    filler.unlink()
    await assert_complete(restarted, batch)


async def test_file_can_be_deleted_on_a_full_disk(start_server: StartServer, small_disk: Path) -> None:
    server = await start_server(data_dir=small_disk)
    file = await server.openai.files.create(file=("a", b"x" * 450_000), purpose="batch")
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"x" * 4096)
        except OSError:
            pass
    assert (await server.openai.files.delete(file.id)).deleted
    assert await server.openai.files.create(file=("a", b"x" * 400_000), purpose="batch")


async def test_interrupted_deletion_can_be_repeated(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await server.openai.files.create(file=("a", b"x"), purpose="batch")

    async def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(aiosqlite.Connection, "execute", fail)
        response = await server.http.delete(f"/v1/files/{file.id}")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
    with pytest.raises(NotFoundError):
        await server.openai.files.content(file.id)
    assert (await server.openai.files.delete(file.id)).deleted


async def test_use_of_another_owners_file_is_not_revealed(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(pause=0.05), api_keys="one,other")

    def client(key: str) -> AsyncOpenAI:
        return server.openai.with_options(api_key=key)

    file = await client("one").files.create(file=("a.jsonl", "\n".join(LINES).encode()), purpose="batch")
    await client("one").batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(NotFoundError):
        await client("other").files.delete(file.id)
    response = await server.http.delete(f"/v1/files/{file.id}", headers={"authorization": "Bearer one"})
    assert isinstance(response, httpx.Response)
    assert response.json()["error"]["code"] == "file_in_use"
