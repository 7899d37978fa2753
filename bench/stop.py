"""What a server does that is told to stop, and one that is killed, in the middle of 8 streams.

python -m bench.stop --write
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

from bench.load import table
from bench.page import write
from bench.per_token import machine
from bench.process import Server
from bench.questions import STRATEGIES, request, url

STREAMS = 8


@asynccontextmanager
async def streaming(server: Server) -> AsyncIterator[list[asyncio.Task[str]]]:
    """Streams of which each has had its first chunk."""
    started = [asyncio.Event() for _ in range(STREAMS)]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        tasks = [asyncio.create_task(stream(client, number, event)) for number, event in enumerate(started)]
        await asyncio.gather(*(event.wait() for event in started))
        yield tasks


async def stream(client: httpx.AsyncClient, number: int, started: asyncio.Event) -> str:
    """How it ended."""
    model = f"onlyseen-tiny:{STRATEGIES[number % len(STRATEGIES)]}"
    body = request(url(number, 336, "JPEG"), model=model, stream=True, max_tokens=150, ignore_eos=True)
    last = ""
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                started.set()
                last = line or last
    except httpx.HTTPError:
        return "cut off"
    return "whole" if last == "data: [DONE]" else "error event" if '"error"' in last else "cut off"


async def terminated(server: Server) -> dict[str, Any]:
    async with streaming(server) as tasks:
        began = server.send(signal.SIGTERM)
        await asyncio.sleep(0.3)
        async with httpx.AsyncClient(base_url=server.url) as client:
            late = await client.post("/v1/chat/completions", json={})
        ends = Counter(await asyncio.gather(*tasks))
    code = await asyncio.to_thread(server.handle.wait, 60)
    return {
        "streams": dict(ends),
        "a_late_question": late.status_code,
        "seconds_to_exit": round(time.monotonic() - began, 1),
        "exit_code": code,
    }


async def killed(server: Server) -> dict[str, Any]:
    """The transformers engine is a thread of the server: they die together, and clients see it at once."""
    async with streaming(server) as tasks:
        began = server.send(signal.SIGKILL)
        ends = Counter(await asyncio.gather(*tasks))
    seconds = time.monotonic() - began
    with Server() as again:
        ready = again.seconds_to_ready
    return {"streams": dict(ends), "seconds_to_notice": round(seconds, 2), "seconds_to_ready_again": round(ready, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, and JSON beside it")
    chosen = parser.parse_args()
    with Server() as server:
        term = asyncio.run(terminated(server))
    with Server() as server:
        kill = asyncio.run(killed(server))
    parts = [("kill -TERM", term), ("kill -9", kill)]
    print(table(parts))
    if chosen.write:
        write("stop", table(parts), {**machine(), "parts": dict(parts)})


if __name__ == "__main__":
    main()
