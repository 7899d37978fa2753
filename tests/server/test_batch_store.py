"""What is kept of files and batches."""

import asyncio
import time
from pathlib import Path

from openai.types import Batch

from server.batch.store import Store


def batch(number: int) -> Batch:
    return Batch(
        id=f"batch_{number}",
        completion_window="24h",
        created_at=int(time.time()),
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        object="batch",
        status="in_progress",
    )


async def test_a_write_that_is_cancelled_holds_up_no_other_server(tmp_path: Path) -> None:
    first, second = Store(tmp_path, 1000), Store(tmp_path, 1000)
    await first.open()
    await second.open()
    try:
        for number in range(40):
            write = asyncio.create_task(first.add("somebody", batch(number)))
            await asyncio.sleep(number * 1e-5)  # before, in the middle of, or after it
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)
            await asyncio.wait_for(second.add("somebody", batch(100 + number)), 2)
    finally:
        await first.close()
        await second.close()
