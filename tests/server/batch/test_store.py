"""The store of files and batches."""

import asyncio
import time
from pathlib import Path

import aiosqlite
from openai.types import Batch

from server.batch.store import BatchStore


def make_batch(number: int) -> Batch:
    return Batch(
        id=f"batch_{number}",
        completion_window="24h",
        created_at=int(time.time()),
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        object="batch",
        status="in_progress",
    )


async def test_statement_waits_a_second_for_a_foreign_lock(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, 1 << 20)
    await store.open()
    try:
        assert [tuple(row) for row in await store.connection.execute_fetchall("PRAGMA busy_timeout")] == [(1000,)]
    finally:
        await store.close()


async def test_cancelled_write_leaves_the_database_unlocked(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, 1000)
    await store.open()
    other = await aiosqlite.connect(tmp_path / "batches.sqlite3", isolation_level=None)
    try:
        for number in range(40):
            write = asyncio.create_task(store.add_batch("owner", make_batch(number)))
            await asyncio.sleep(number * 1e-5)  # before, during or after the write
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)
            query = "INSERT INTO batches VALUES (?, '', '', '')"
            await asyncio.wait_for(other.execute(query, (f"batch_{100 + number}",)), 2)
    finally:
        await other.close()
        await store.close()
