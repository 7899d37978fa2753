"""Files of lines: damage, crashes, and reading while a batch runs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from server.batch.jsonl import hash_custom_id, recover_finished_ids
from server.batch.store import BatchStore, get_result_file_ids
from server.routes import files
from tests.server.batch.faults import ALL_IDS, LINES, assert_complete
from tests.server.batch.harness import count_lines, create_batch, make_line, run_steps, stop, wait_for_status
from tests.server.conftest import StartServer, wait_until
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.usefixtures("retry_soon")

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


def hash_all(ids: Iterable[str]) -> set[bytes]:
    return set(map(hash_custom_id, ids))


def list_ids(content: bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


def test_recovery_keeps_lines_of_all_lengths(tmp_path: Path) -> None:
    path = tmp_path / "output"
    content, ids = make_damaged_results()
    path.write_bytes(content + b'{"custom_id": "half')
    assert run_steps(recover_finished_ids(path)) == hash_all(ids)
    assert list_ids(path.read_bytes()) == ids
    assert run_steps(recover_finished_ids(path, hash_all(["1", "2"]))) == hash_all(ids[2:])
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
        run_steps(recover_finished_ids(path))
    assert run_steps(recover_finished_ids(path)) == hash_all(ids)
    assert list_ids(path.read_bytes()) == ids


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


async def test_file_of_a_running_batch_has_complete_lines(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with monkeypatch.context() as patch:
        patch.setattr(files, "read_parts", None)  # a response to HEAD reads no part
        head = await server.http.head(f"/v1/files/{file_id}/content")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) >= len(response.content)
    assert head.headers["content-type"] == response.headers["content-type"]
    await assert_complete(server, batch)
