"""64 image requests at once, and what a full queue says to those that come after.

python -m bench.load --write
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from bench.page import write
from bench.per_token import machine
from bench.process import Server
from bench.questions import SIZES, STRATEGIES, request, url

AT_ONCE = 64
ROWS = 8  # that run at once where the queue is to be full: the others wait
REFUSED = 50
AT_REST = 3.0  # seconds without a request
JSON = {"content-type": "application/json"}


async def timed(client: httpx.AsyncClient, content: bytes) -> tuple[int, float, bool]:
    """(status, milliseconds, whether it says when to come again)."""
    began = time.perf_counter()
    response = await client.post("/v1/chat/completions", content=content, headers=JSON)
    return response.status_code, 1000 * (time.perf_counter() - began), "retry-after" in response.headers


def written(body: dict[str, Any]) -> bytes:
    """Before the clock starts: what the client does with it is not the server's time."""
    return json.dumps(body).encode()


async def together(server: Server) -> dict[str, Any]:
    """Mixed strategies and sizes, all at once, with /health asked all the while."""
    bodies = [
        written(request(url(at, SIZES[at % 3], "JPEG"), model=f"onlyseen-tiny:{STRATEGIES[at % len(STRATEGIES)]}"))
        for at in range(AT_ONCE)
    ]
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=200)) as client:
        await timed(client, bodies[0])
        before, began, beats, held = server.megabytes, time.perf_counter(), list[float](), list[float]()
        beating = asyncio.create_task(beat(client, server, beats, held))
        answers = await asyncio.gather(*(timed(client, body) for body in bodies))
        seconds = time.perf_counter() - began
        beating.cancel()
        after = server.megabytes
        await asyncio.sleep(AT_REST)
    return {
        "statuses": dict(Counter(status for status, _, _ in answers)),
        "seconds": round(seconds, 2),
        "slowest_ms": round(max(took for _, took, _ in answers)),
        "health_ms_p50": round(statistics.median(beats), 1),
        "health_ms_worst": round(max(beats), 1),
        "megabytes_more_meanwhile": round(max(held) - before),
        "megabytes_more": round(after - before),
        "megabytes_more_at_rest": round(server.megabytes - before),
    }


async def beat(client: httpx.AsyncClient, server: Server, told: list[float], held: list[float]) -> None:
    while True:
        held.append(server.megabytes)
        began = time.perf_counter()
        await client.get("/health")
        told.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(0.05)


async def beyond(server: Server) -> dict[str, Any]:
    """Long answers fill the engine and its queue; then requests come one after the other, and in one burst."""
    long = written(request(url(0, 112, "PNG"), max_tokens=1900, ignore_eos=True))
    late = written(request(url(1, 336, "JPEG")))
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=200)) as client,
        httpx.AsyncClient(base_url=server.url, timeout=300) as other,
    ):
        filling = {asyncio.create_task(timed(client, long)) for _ in range(AT_ONCE)}
        while not await is_full(server, other):
            refused_early = {task for task in filling if task.done()}
            again = {asyncio.create_task(timed(client, long)) for _ in refused_early}
            filling = filling - refused_early | again
            await asyncio.sleep(0.5)
        refused = [await timed(other, late) for _ in range(REFUSED)]
        burst = await asyncio.gather(*(timed(other, late) for _ in range(REFUSED)))
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)
    took = sorted(milliseconds for _, milliseconds, _ in refused)
    return {
        "statuses_beyond": dict(Counter(status for status, _, _ in [*refused, *burst])),
        "retry_after": all(says for _, _, says in [*refused, *burst]),
        "refusal_ms_p50": round(statistics.median(took), 1),
        "refusal_ms_p98": round(took[-2], 1),
        "refusal_ms_worst": round(took[-1], 1),
        "burst_ms_worst": round(max(milliseconds for _, milliseconds, _ in burst), 1),
    }


async def is_full(server: Server, client: httpx.AsyncClient) -> bool:
    running, waiting = [await server.metric(client, f"num_requests_{state}") for state in ("running", "waiting")]
    return (running, waiting) == (ROWS, AT_ONCE - ROWS)


def table(parts: Sequence[tuple[str, dict[str, Any]]]) -> str:
    lines = ["| part | measure | value |", "|---|---|---|"]
    return "\n".join(lines + [f"| {part} | {name} | {value} |" for part, told in parts for name, value in told.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, and JSON beside it")
    chosen = parser.parse_args()
    busy = {"load_average": round(os.getloadavg()[0], 1)}  # what else the machine is doing
    with Server() as server:
        first = {"seconds_to_ready": round(server.seconds_to_ready, 1)} | asyncio.run(together(server))
    with Server("--max-rows", str(ROWS), "--max-waiting", str(AT_ONCE - ROWS)) as server:
        second = asyncio.run(beyond(server))
    parts = [("machine", busy), (f"{AT_ONCE} at once", first), ("beyond the queue", second)]
    print(table(parts))
    if chosen.write:
        write("load", table(parts), {**machine(), **busy, "parts": dict(parts)})


if __name__ == "__main__":
    main()
