"""Full disks: batches wait for space and lose no answer."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError
from structlog.typing import EventDict

from server.batch import runner
from server.batch.store import get_result_file_ids
from tests.server.batch.faults import (
    FULL,
    LINES,
    FaultyCalls,
    assert_complete,
    create_batch_that_waits,
    wait_for_reason,
)
from tests.server.batch.harness import count_lines, create_batch, read_results, stop, wait_for_status
from tests.server.conftest import StartServer, wait_until
from tests.server.fakes import FakeEngine

pytestmark = pytest.mark.usefixtures("retry_soon")


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


async def test_results_that_a_full_disk_does_not_take_are_bounded_in_bytes(
    start_server: StartServer, fsync: FaultyCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One result is kept. Those of the other workers are dropped, and their lines run again when there is space."""
    monkeypatch.setattr(runner, "MAX_UNSTORED_BYTES", 1)
    server = await start_server(batch_requests=4)
    batch = await create_batch_that_waits(server, fsync)
    await wait_until(lambda: len(server.engine.requests) == 6)
    await asyncio.sleep(0.2)
    assert len(server.engine.requests) == 6, "no line is answered again while the disk is full"
    fsync.failure = None
    await assert_complete(server, batch)
    assert len(server.engine.requests) == len(LINES) + 3


@pytest.mark.parametrize("change", [{"status": "cancelling"}, {"expires_at": 1}])
async def test_batch_that_ends_on_a_full_disk_keeps_answers_that_are_not_yet_stored(
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


async def test_input_of_a_cancelling_batch_can_be_deleted(start_server: StartServer, fsync: FaultyCalls) -> None:
    server = await start_server(batch_requests=2)
    batch = await create_batch_that_waits(server, fsync)
    with pytest.raises(APIStatusError, match="unfinished batch uses this file"):
        await server.openai.files.delete(batch.input_file_id)
    await server.openai.batches.cancel(batch.id)
    assert (await server.openai.files.delete(batch.input_file_id)).deleted
    fsync.failure = None
    assert (await wait_for_status(server, batch)).status == "cancelled"


async def test_answer_that_is_not_yet_stored_survives_a_dead_engine(
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
