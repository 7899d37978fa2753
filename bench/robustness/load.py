"""64 concurrent image requests, and the refusals of a full queue.

python -m bench.robustness.load --write
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections import Counter
from typing import Any

import httpx

from bench.harness.chat_requests import SIZES, STRATEGIES, build_image_url, build_request
from bench.harness.docs_page import describe_machine, format_figures, write_results
from bench.harness.server_process import ServerProcess

REQUESTS = 64
MAX_ROWS = 8  # running requests in the part with a full queue
LATE_REQUESTS = 50
IDLE_SECONDS = 3.0
JSON = {"content-type": "application/json"}


async def post_completion(client: httpx.AsyncClient, content: bytes) -> tuple[int, float, bool]:
    """Post a body and return (status, milliseconds, whether Retry-After is set)."""
    started_at = time.perf_counter()
    response = await client.post("/v1/chat/completions", content=content, headers=JSON)
    return response.status_code, 1000 * (time.perf_counter() - started_at), "retry-after" in response.headers


def encode_json(body: dict[str, Any]) -> bytes:
    """Encode a body before the clock starts, so that the client's time is not measured."""
    return json.dumps(body).encode()


async def run_burst(server: ServerProcess) -> dict[str, Any]:
    """Send requests of mixed strategies and sizes at once, and poll /health meanwhile."""
    models = [f"onlyseen-tiny:{STRATEGIES[index % len(STRATEGIES)]}" for index in range(REQUESTS)]
    images = [build_image_url(index, SIZES[index % 3], "JPEG") for index in range(REQUESTS)]
    bodies = [encode_json(build_request(image, model=model)) for image, model in zip(images, models, strict=True)]
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=200)) as client:
        await post_completion(client, bodies[0])
        megabytes_before, started_at, health_latencies, memory = (
            server.megabytes,
            time.perf_counter(),
            list[float](),
            list[float](),
        )
        polling = asyncio.create_task(poll_health(client, server, health_latencies, memory))
        answers = await asyncio.gather(*(post_completion(client, body) for body in bodies))
        seconds = time.perf_counter() - started_at
        polling.cancel()
        megabytes_after = server.megabytes
        await asyncio.sleep(IDLE_SECONDS)
    return {
        "statuses": dict(Counter(status for status, _, _ in answers)),
        "seconds": round(seconds, 2),
        "slowest_ms": round(max(milliseconds for _, milliseconds, _ in answers)),
        "health_ms_p50": round(statistics.median(health_latencies), 1),
        "health_ms_worst": round(max(health_latencies), 1),
        "megabytes_added_at_peak": round(max(memory) - megabytes_before),
        "megabytes_added": round(megabytes_after - megabytes_before),
        "megabytes_added_at_rest": round(server.megabytes - megabytes_before),
    }


async def poll_health(
    client: httpx.AsyncClient, server: ServerProcess, latencies: list[float], memory: list[float]
) -> None:
    """Record the latency of /health and the server's memory until cancelled."""
    while True:
        memory.append(server.megabytes)
        started_at = time.perf_counter()
        await client.get("/health")
        latencies.append(1000 * (time.perf_counter() - started_at))
        await asyncio.sleep(0.05)


async def overload_queue(server: ServerProcess) -> dict[str, Any]:
    """Fill the engine and its queue with long answers, then send requests one by one and in a burst."""
    long_body = encode_json(build_request(build_image_url(0, 112, "PNG"), max_tokens=1900, ignore_eos=True))
    late_body = encode_json(build_request(build_image_url(1, 336, "JPEG")))
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=200)) as client,
        httpx.AsyncClient(base_url=server.url, timeout=300) as late_client,
    ):
        running = {asyncio.create_task(post_completion(client, long_body)) for _ in range(REQUESTS)}
        while not await is_full(server, late_client):
            refused_early = {task for task in running if task.done()}
            retried = {asyncio.create_task(post_completion(client, long_body)) for _ in refused_early}
            running = running - refused_early | retried
            await asyncio.sleep(0.5)
        refused = [await post_completion(late_client, late_body) for _ in range(LATE_REQUESTS)]
        burst = await asyncio.gather(*(post_completion(late_client, late_body) for _ in range(LATE_REQUESTS)))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    latencies = sorted(milliseconds for _, milliseconds, _ in refused)
    return {
        "statuses_beyond": dict(Counter(status for status, _, _ in [*refused, *burst])),
        "retry_after": all(has_retry_after for _, _, has_retry_after in [*refused, *burst]),
        "refusal_ms_p50": round(statistics.median(latencies), 1),
        "refusal_ms_p98": round(latencies[-2], 1),
        "refusal_ms_worst": round(latencies[-1], 1),
        "burst_ms_worst": round(max(milliseconds for _, milliseconds, _ in burst), 1),
    }


async def is_full(server: ServerProcess, client: httpx.AsyncClient) -> bool:
    """Check that the engine and its queue are full."""
    running, waiting = [await server.read_metric(client, f"num_requests_{state}") for state in ("running", "waiting")]
    return (running, waiting) == (MAX_ROWS, REQUESTS - MAX_ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/benchmarks.md and the figures as JSON"
    )
    options = parser.parse_args()
    load = {"load_average": round(os.getloadavg()[0], 1)}  # of other work on the machine
    with ServerProcess() as server:
        burst_figures = {"seconds_to_ready": round(server.seconds_to_ready, 1)} | asyncio.run(run_burst(server))
    with ServerProcess("--max-rows", str(MAX_ROWS), "--max-waiting", str(REQUESTS - MAX_ROWS)) as server:
        overload_figures = asyncio.run(overload_queue(server))
    parts = [("machine", load), (f"{REQUESTS} at once", burst_figures), ("beyond the queue", overload_figures)]
    print(format_figures(parts))
    if options.write:
        write_results("load", format_figures(parts), {**describe_machine(), **load, "parts": dict(parts)})


if __name__ == "__main__":
    main()
