"""Databases that fail, and errors that end a batch."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import aiosqlite
import pytest
from openai import NotFoundError

from server.batch import line_workers
from server.batch.data_folder import DataFolderError
from server.batch.store import BatchStore, get_result_file_ids
from tests.server.batch.faults import LINES, FaultyCalls, assert_complete
from tests.server.batch.harness import count_lines, create_batch, read_results, stop, wait_for_status
from tests.server.conftest import FakeServer, StartServer, wait_until
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.usefixtures("retry_soon")


async def test_unreadable_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "batches.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(DataFolderError, match=r"the database in .* cannot be opened: file is not a database"):
        await BatchStore(tmp_path, 1000).open()


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


async def test_failed_batch_keeps_its_answers_and_has_a_reason(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(FakeEngine(pause=0.01), batch_requests=1)
    batch = await create_batch(server, *LINES)
    path = server.app.state.batch_store.get_path(get_result_file_ids(batch.id)[0])
    await wait_until(lambda: count_lines(path) >= 2)

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of the server")

    monkeypatch.setattr(line_workers, "is_over", fail)
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
