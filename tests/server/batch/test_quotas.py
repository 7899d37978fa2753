"""Bounds on the bytes and the number of files and batches, and uploads that arrive slowly or never."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from io import FileIO
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest
from anyio.to_thread import run_sync
from openai import APIStatusError, NotFoundError

from server.batch import data_folder, store
from server.batch.data_folder import DataFolder, write_all
from server.errors import StorageFull
from tests.server.batch.faults import LINES, assert_complete, wait_for_reason
from tests.server.batch.harness import create_batch, make_line, read_results, stop, wait_for_status
from tests.server.conftest import FakeServer, StartServer, wait_until
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.usefixtures("retry_soon")


def get_stored_bytes(server: FakeServer) -> int:
    folder: Path = server.app.state.batch_store.folder.path
    return sum(path.stat().st_size for pattern in ("file-*", "upload-*") for path in folder.glob(pattern))


async def test_results_count_against_the_quota(start_server: StartServer, tmp_path: Path) -> None:
    filler = b"x" * 600_000
    server = await start_server(FakeEngine(words=["word " * 3000]), data_dir=tmp_path, max_data_mb=1)
    lines = [make_line(number, max_tokens=1) for number in range(40)]
    other = await server.openai.files.create(file=("a", filler), purpose="batch")
    batch = await create_batch(server, *lines)
    assert await wait_for_reason(server, batch) == "storage_full"
    await asyncio.sleep(0.2)
    assert 600_000 < get_stored_bytes(server) <= 1_000_000
    await server.openai.files.delete(other.id)
    batch = await wait_for_status(server, batch)
    assert batch.status == "completed"
    assert len(await read_results(server, batch.output_file_id)) == 40
    used = get_stored_bytes(server)
    assert used <= 1_000_000
    await stop(server)
    restarted = await start_server(data_dir=tmp_path, max_data_mb=1)
    size = 1_000_000 - used
    response = await restarted.http.post("/v1/files", files={"file": b"x" * (size + 1)}, data={"purpose": "batch"})
    assert response.json()["error"]["code"] == "storage_full"


async def test_one_of_eight_parallel_uploads_is_stored(start_server: StartServer) -> None:
    server = await start_server(max_data_mb=1)
    uploads = [
        server.http.post("/v1/files", files={"file": b"x" * 900_000}, data={"purpose": "batch"}) for _ in range(8)
    ]
    statuses = sorted(response.status_code for response in await asyncio.gather(*uploads))
    assert statuses == [200] + [400] * 7
    assert get_stored_bytes(server) == 900_000
    server.app.state.batch_store.folder.reserve("", 100_000)


class UnfinishedUpload:
    """An upload that declares more bytes than it sends before `end` is set."""

    def __init__(self, server: FakeServer, declared: int, sent: int) -> None:
        self.app = server.app
        self.declared = declared
        self.parts = [b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n', b"x" * sent]
        self.end = asyncio.Event()
        self.messages: list[Any] = []  # sent by the application

    async def receive(self) -> Any:
        if self.parts:
            return {"type": "http.request", "body": self.parts.pop(0), "more_body": True}
        await self.end.wait()
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    async def call(self) -> None:
        headers = {"content-type": "multipart/form-data; boundary=b", "content-length": str(self.declared)}
        scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
        scope |= {"path": "/v1/files", "raw_path": b"/v1/files", "query_string": b"", "scheme": "http"}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.app(scope, self.receive, self.send)


async def test_idle_uploads_take_no_storage(start_server: StartServer) -> None:
    server = await start_server(max_data_mb=1)
    uploads = [UnfinishedUpload(server, 990_000, 1) for _ in range(8)]
    tasks = [asyncio.create_task(upload.call()) for upload in uploads]
    await wait_until(lambda: get_stored_bytes(server) == 8)
    assert await server.openai.files.create(file=("a", b"x" * 900_000), purpose="batch")
    await assert_complete(server, await create_batch(server, *LINES))
    for upload in uploads:
        upload.end.set()
    await asyncio.gather(*tasks)
    assert [upload.messages[0]["status"] for upload in uploads] == [400] * 8


async def test_results_take_the_place_of_unfinished_uploads(start_server: StartServer) -> None:
    server = await start_server(max_data_mb=1)
    upload = UnfinishedUpload(server, 990_000, 980_000)
    task = asyncio.create_task(upload.call())
    await wait_until(lambda: get_stored_bytes(server) == 980_000)
    store = server.app.state.batch_store
    await run_sync(store.folder.reserve, "", 500_000)
    assert get_stored_bytes(server) == 0
    upload.end.set()
    await task
    assert upload.messages[0]["status"] == 400
    assert b"storage_full" in upload.messages[1]["body"]
    store.folder.reserve("", 500_000)


def test_oldest_active_upload_gets_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DataFolder(tmp_path, 1000)
    folder.open()
    stalled, oldest, newest = [folder.add_partial_file("") for _ in range(3)]
    for file in (stalled, oldest, newest):
        file.write(b"x" * 300)
    with monkeypatch.context() as patch:
        patch.setattr(stalled, "is_stalled", lambda _: True)
        patch.setattr(oldest, "is_stalled", lambda _: False)
        patch.setattr(newest, "is_stalled", lambda _: False)
        oldest.write(b"x" * 200)
        assert [file.is_dropped for file in (stalled, oldest, newest)] == [True, False, False]
        oldest.write(b"x" * 400)
        assert [file.is_dropped for file in (oldest, newest)] == [False, True]
        with pytest.raises(StorageFull):
            oldest.write(b"x" * 101)
        oldest.write(b"x" * 100)
    assert sum(path.stat().st_size for path in tmp_path.glob("upload-*")) == 1000
    folder.drop_partial_file(oldest)
    folder.reserve("", 1000)
    folder.close()


async def test_event_loop_does_not_wait_for_a_slow_disk(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload whose write hangs is dropped for a result, while other uploads arrive."""
    server = await start_server(max_data_mb=1, data_dir=tmp_path)
    folder, is_writing, may_write = server.app.state.batch_store.folder, threading.Event(), threading.Event()

    def write_slowly(file: FileIO, data: bytes) -> None:
        is_writing.set()
        assert may_write.wait(30)
        write_all(file, data)

    upload = folder.add_partial_file("")
    with monkeypatch.context() as patch:
        patch.setattr(data_folder, "write_all", write_slowly)
        writing = asyncio.create_task(run_sync(upload.write, b"x" * 900_000))
        await run_sync(is_writing.wait)
        reserving = asyncio.create_task(run_sync(folder.reserve, "", 500_000))
        await wait_until(lambda: upload.is_dropped)
        timer = threading.Timer(5, may_write.set)  # against a hang of the event loop
        timer.start()
        folder.check_fits("", 1)
        folder.drop_partial_file(folder.add_partial_file(""))
        has_waited = may_write.is_set()
        timer.cancel()
        may_write.set()
        await asyncio.gather(writing, reserving)
    assert not has_waited
    assert get_stored_bytes(server) == 0
    folder.reserve("", 500_000)


async def test_key_has_a_share_of_the_storage(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,other", max_data_mb=1)

    async def upload(key: str, size: int) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        files = {"file": b"x" * size}
        return await server.http.post("/v1/files", files=files, data={"purpose": "batch"}, headers=headers)

    assert (await upload("one", 400_000)).status_code == 200
    refused = await upload("one", 101_000)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "storage_full")
    assert "share" in refused.json()["error"]["message"]
    file = await upload("other", 490_000)
    assert file.status_code == 200
    headers = {"authorization": "Bearer other"}
    assert (await server.http.delete(f"/v1/files/{file.json()['id']}", headers=headers)).status_code == 200
    assert (await upload("other", 490_000)).status_code == 200


async def test_files_without_an_owner_are_removed_at_start(start_server: StartServer, tmp_path: Path) -> None:
    first = await start_server(data_dir=tmp_path, max_data_mb=1)
    kept = await first.openai.files.create(file=("a", b"x" * 90_000), purpose="batch")
    await stop(first)
    (tmp_path / "file-0123").write_bytes(b"x" * 900_000)  # a crash before its registration
    server = await start_server(data_dir=tmp_path, max_data_mb=1)
    assert [name for name in os.listdir(tmp_path) if name.startswith("file-")] == [kept.id]
    assert await server.openai.files.create(file=("a", b"x" * 900_000), purpose="batch")


async def test_number_of_files_is_bounded(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_FILES", 2)
    files = [await server.openai.files.create(file=("a", LINES[0].encode()), purpose="batch") for _ in range(2)]
    response = await server.http.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "too_many_files")
    body = {"input_file_id": files[0].id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert (await server.http.post("/v1/batches", json=body)).json()["error"]["code"] == "too_many_files"
    assert get_stored_bytes(server) == 2 * len(LINES[0])
    await server.openai.files.delete(files[1].id)
    await server.openai.files.create(file=("a", b"x"), purpose="batch")


async def test_number_of_batches_is_bounded(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_BATCHES", 2)
    server = await start_server(FakeEngine(pause=0.05))
    batches = [await wait_for_status(server, await create_batch(server, LINES[0])) for _ in range(2)]
    running = [await create_batch(server, *LINES) for _ in range(2)]
    with pytest.raises(NotFoundError):
        await server.openai.batches.retrieve(batches[0].id)
    response = await server.http.post(
        "/v1/batches",
        json={
            "input_file_id": batches[1].input_file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    )
    assert (response.status_code, response.json()["error"]["code"]) == (429, "too_many_batches")
    for batch in running:
        await wait_for_status(server, batch)


async def test_upload_without_a_length_is_refused_before_the_quota_is_exceeded(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(max_data_mb=1, data_dir=tmp_path)
    largest = 0

    async def send() -> Any:
        nonlocal largest
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(300):
            largest = max(largest, get_stored_bytes(server))
            yield b"x" * 10_000
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = await server.http.post("/v1/files", content=send(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "storage_full")
    assert 900_000 < largest <= 1_000_000
    assert get_stored_bytes(server) == 0
    assert await server.openai.files.create(file=("a", b"x" * 990_000), purpose="batch")


async def test_upload_is_spooled_into_the_data_folder(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(data_dir=tmp_path)
    names: list[str] = []
    rename = Path.rename

    def record(path: Path, target: Path) -> Path:
        names.append(f"{path.parent == tmp_path} {path.name[:7]} {path.stat().st_size}")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", record)
    await server.openai.files.create(file=("a", b"x" * 3_000_000), purpose="batch")
    assert names == ["True upload- 3000000"]


@pytest.mark.parametrize("form", [{"data": {"purpose": "vision"}}, {"data": {"purpose": "batch", "more": "x"}}])
async def test_refused_upload_leaves_no_bytes(server: FakeServer, form: dict[str, Any]) -> None:
    assert (await server.http.post("/v1/files", files={"file": b"x" * 10_000}, **form)).status_code == 400
    assert get_stored_bytes(server) == 0
    folder = server.app.state.batch_store.folder
    folder.reserve("", folder.max_bytes)


async def test_unfinished_uploads_are_removed_at_start(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "upload-1").write_bytes(b"x" * 900_000)
    server = await start_server(data_dir=tmp_path, max_data_mb=1)
    assert await server.openai.files.create(file=("a", b"x" * 900_000), purpose="batch")
    assert get_stored_bytes(server) == 900_000


async def test_empty_file_can_be_uploaded(server: FakeServer) -> None:
    file = await server.openai.files.create(file=("a", b""), purpose="batch")
    assert (await server.openai.files.content(file.id)).content == b""


async def test_failed_registration_leaves_no_bytes(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(aiosqlite.Connection, "execute", fail)
    with pytest.raises(APIStatusError, match="disk is full"):
        await server.openai.files.create(file=("a", b"x" * 5000), purpose="batch")
    assert get_stored_bytes(server) == 0
    folder = server.app.state.batch_store.folder
    folder.reserve("", folder.max_bytes)
