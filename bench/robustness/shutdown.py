"""A server that is terminated, and one that is killed, while it sends eight streams.

python -m bench.robustness.shutdown --write
"""

import argparse
import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from bench.harness.chat_requests import STRATEGIES, build_image_url, build_request
from bench.harness.docs_page import describe_machine, format_figures, write_results
from bench.harness.server_process import ServerProcess

STREAMS = 8


@asynccontextmanager
async def open_streams(server: ServerProcess) -> AsyncIterator[list[asyncio.Task[str]]]:
    """Open streams and wait until each has its first chunk.

    Yields:
        Tasks that read the streams.
    """
    first_chunks = [asyncio.Event() for _ in range(STREAMS)]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        tasks = [asyncio.create_task(read_stream(client, number, event)) for number, event in enumerate(first_chunks)]
        await asyncio.gather(*(event.wait() for event in first_chunks))
        yield tasks


async def read_stream(client: httpx.AsyncClient, number: int, first_chunk: asyncio.Event) -> str:
    """Read a stream and return how it ended."""
    model = f"onlyseen-tiny:{STRATEGIES[number % len(STRATEGIES)]}"
    body = build_request(
        build_image_url(number, 336, "JPEG"), model=model, stream=True, max_tokens=150, ignore_eos=True
    )
    last_line = ""
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                first_chunk.set()
                last_line = line or last_line
    except httpx.HTTPError:
        return "cut off"
    return "complete" if last_line == "data: [DONE]" else "error event" if '"error"' in last_line else "cut off"


async def terminate_server(server: ServerProcess) -> dict[str, Any]:
    """Send SIGTERM during eight streams."""
    async with open_streams(server) as tasks:
        signalled_at = server.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        async with httpx.AsyncClient(base_url=server.url) as client:
            late_response = await client.post("/v1/chat/completions", json={})
        outcomes = Counter(await asyncio.gather(*tasks))
    exit_code = await asyncio.to_thread(server.handle.wait, 60)
    return {
        "streams": dict(outcomes),
        "late_request_status": late_response.status_code,
        "seconds_to_exit": round(time.monotonic() - signalled_at, 1),
        "exit_code": exit_code,
    }


async def kill_server(server: ServerProcess) -> dict[str, Any]:
    """Send SIGKILL during eight streams. The engine is a thread of the server, so both end together."""
    async with open_streams(server) as tasks:
        signalled_at = server.send_signal(signal.SIGKILL)
        outcomes = Counter(await asyncio.gather(*tasks))
    seconds = time.monotonic() - signalled_at
    with ServerProcess() as restarted:
        seconds_to_ready = restarted.seconds_to_ready
    return {
        "streams": dict(outcomes),
        "seconds_to_notice": round(seconds, 2),
        "seconds_to_ready_again": round(seconds_to_ready, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/benchmarks.md and the figures as JSON"
    )
    options = parser.parse_args()
    with ServerProcess() as server:
        terminate_figures = asyncio.run(terminate_server(server))
    with ServerProcess() as server:
        kill_figures = asyncio.run(kill_server(server))
    parts = [("kill -TERM", terminate_figures), ("kill -9", kill_figures)]
    print(format_figures(parts))
    if options.write:
        write_results("shutdown", format_figures(parts), {**describe_machine(), "parts": dict(parts)})


if __name__ == "__main__":
    main()
