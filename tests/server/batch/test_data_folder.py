"""The data folder: one server uses it, and each key sees its own files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError

from server.batch.data_folder import DataFolder, DataFolderError
from server.batch.store import BatchStore
from tests.server.batch.faults import LINES
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
