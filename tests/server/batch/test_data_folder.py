"""The data folder: one server uses it, and each key sees its own files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError
from structlog.typing import EventDict

from server.batch.data_folder import DataFolder, DataFolderError
from server.batch.store import BatchStore
from tests.server.batch.faults import LINES
from tests.server.batch.harness import create_batch, stop, wait_for_status
from tests.server.conftest import StartServer
from tests.server.fakes import FakeEngine


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


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("file-*")}


@pytest.mark.parametrize("is_removed", [False, True])
async def test_lost_database_leaves_the_files(
    start_server: StartServer, tmp_path: Path, is_removed: bool, log_entries: list[EventDict]
) -> None:
    first = await start_server(data_dir=tmp_path, max_data_mb=1)
    batch = await wait_for_status(first, await create_batch(first, *LINES))
    contents = read_files(tmp_path)
    await stop(first)
    assert {batch.input_file_id, batch.output_file_id} <= set(contents)
    database = tmp_path / "batches.sqlite3"
    saved = database.read_bytes()
    if is_removed:
        database.unlink()
    else:
        os.truncate(database, 0)
    second = await start_server(data_dir=tmp_path, max_data_mb=1)
    assert read_files(tmp_path / "lost") == contents
    (entry,) = (entry for entry in log_entries if entry["event"] == "files_without_database_moved")
    assert (entry["folder"], set(entry["files"])) == (str(tmp_path / "lost"), set(contents))
    assert await second.openai.files.create(file=("a", b"x" * 999_000), purpose="batch")  # lost files do not count
    await stop(second)

    database.write_bytes(saved)
    for name in contents:
        (tmp_path / "lost" / name).rename(tmp_path / name)
    restored = await start_server(data_dir=tmp_path, max_data_mb=1)
    assert batch.output_file_id is not None
    assert (await restored.openai.files.content(batch.output_file_id)).content == contents[batch.output_file_id]


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
