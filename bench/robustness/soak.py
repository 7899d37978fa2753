"""Long mixed load: images and strategies of all kinds, early disconnects, slow readers and invalid requests.

    python -m bench.robustness.soak --minutes 20 --write

These must not happen: 5xx answers, rows that stay in the batch, growth of memory or file descriptors after the warm-up.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx

from bench.harness.chat_requests import build_random_request
from bench.harness.docs_page import describe_machine, format_figures, write_results
from bench.harness.server_process import ServerProcess

CLIENTS = 8
WARM_UP = 0.25  # fraction of the time; memory is compared after it
MAX_REPORTED = 5  # broken connections that are reported one by one


@dataclass(frozen=True)
class BrokenConnection:
    """A broken connection, as the client saw it."""

    action: str
    request_id: str
    error: Exception
    seconds: float  # since the request began

    def describe(self, log: str) -> str:
        """Describe the connection with the lines of the server's log about it."""
        causes = []
        cause: BaseException | None = self.error
        while cause is not None:
            causes.append(repr(cause))
            cause = cause.__cause__ or cause.__context__
        lines = [line for line in log.splitlines() if f'"{self.request_id}"' in line]
        return f"{self.action} after {self.seconds:.2f} s: {' from '.join(causes)}; log: {lines or 'nothing'}"


class SoakTest:
    """Clients of five kinds against one server, for a given time."""

    def __init__(self, server: ServerProcess, minutes: float) -> None:
        self.server = server
        self.started_at = time.monotonic()
        self.ends_at = self.started_at + 60 * minutes
        self.counts: Counter[str] = Counter()
        self.broken: list[BrokenConnection] = []
        self.samples: list[tuple[float, float, int]] = []  # (seconds, megabytes, descriptors)

    async def run(self) -> dict[str, Any]:
        """Run all clients and return the figures."""
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=300, limits=limits) as client:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.sample_resources())
                for number in range(CLIENTS):
                    group.create_task(self.run_client(client, number))
            await asyncio.sleep(2)
            rows = {
                name: await self.server.read_metric(client, name)
                for name in ("num_requests_running", "num_requests_waiting")
            }
            answer = await client.post("/v1/chat/completions", json=build_random_request(random.Random(0)))
        return self.summarize() | {"leaked_rows": int(sum(rows.values())), "status_afterwards": answer.status_code}

    async def run_client(self, client: httpx.AsyncClient, number: int) -> None:
        """Perform random actions until the time is over."""
        rng = random.Random(number)
        actions = (
            self.send_request,
            self.send_request,
            self.read_stream,
            self.disconnect_early,
            self.read_slowly,
            self.send_invalid,
        )
        for turn in count():
            if time.monotonic() >= self.ends_at:
                break
            action, request_id, started_at = rng.choice(actions), f"client-{number}-{turn}", time.monotonic()
            try:
                await action(client, rng, {"x-request-id": request_id})
            except (httpx.TransportError, OSError) as error:
                self.counts[f"connections lost ({type(error).__name__})"] += 1
                self.broken.append(BrokenConnection(action.__name__, request_id, error, time.monotonic() - started_at))

    async def send_request(self, client: httpx.AsyncClient, rng: random.Random, headers: dict[str, str]) -> None:
        """Send a request and wait for the answer."""
        response = await client.post("/v1/chat/completions", json=build_random_request(rng), headers=headers)
        self.counts[str(response.status_code)] += 1

    async def read_stream(self, client: httpx.AsyncClient, rng: random.Random, headers: dict[str, str]) -> None:
        """Read a streamed answer to its end."""
        body = build_random_request(rng) | {"stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            lines = [line async for line in response.aiter_lines() if line]
            is_complete = response.status_code == 200 and lines[-1] == "data: [DONE]"
        self.counts["complete streams" if is_complete else f"broken streams ({response.status_code})"] += 1

    async def disconnect_early(self, client: httpx.AsyncClient, rng: random.Random, headers: dict[str, str]) -> None:
        """Disconnect after a moment, with or without streaming."""
        body = build_random_request(rng) | {"stream": rng.random() < 0.5, "max_tokens": 64, "ignore_eos": True}
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0.01, 0.5)):
                await client.post("/v1/chat/completions", json=body, headers=headers)
        self.counts["disconnected clients"] += 1

    async def read_slowly(self, _: httpx.AsyncClient, rng: random.Random, headers: dict[str, str]) -> None:
        """Read a few bytes at a time from a raw connection."""
        body = json.dumps(build_random_request(rng) | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        header_values = {**headers, "host": host, "content-type": "application/json", "content-length": len(body)}
        lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in header_values.items())]
        writer.write("\r\n".join([*lines, "connection: close\r\n\r\n"]).encode() + body)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and await reader.read(64):  # noqa: ASYNC110 - the client is slow on purpose
            await asyncio.sleep(0.05)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.counts["slow readers"] += 1

    async def send_invalid(self, client: httpx.AsyncClient, rng: random.Random, headers: dict[str, str]) -> None:
        """Send an invalid request."""
        body = build_random_request(rng) | rng.choice(
            [
                {"temperature": -1},
                {"nonsense": 1},
                {"messages": []},
                {"model": "other"},
                {"decoding": {"vcd": {"a": 1}}},
            ]
        )
        response = await client.post("/v1/chat/completions", json=body, headers=headers)
        self.counts[str(response.status_code)] += 1

    async def sample_resources(self) -> None:
        """Record memory and file descriptors once a second."""
        while time.monotonic() < self.ends_at:
            self.samples.append((time.monotonic() - self.started_at, self.server.megabytes, self.server.descriptors))
            await asyncio.sleep(1)

    def summarize(self) -> dict[str, Any]:
        """Return the figures of the test."""
        warm_samples = [sample for sample in self.samples if sample[0] > WARM_UP * (self.ends_at - self.started_at)]
        times, memory, descriptors = [[sample[part] for sample in warm_samples] for part in range(3)]
        slope = statistics.linear_regression([seconds / 3600 for seconds in times], memory).slope
        half = len(memory) // 2
        return {
            "minutes": round((self.ends_at - self.started_at) / 60, 1),
            **dict(sorted(self.counts.items())),
            "responses_5xx": sum(count for status, count in self.counts.items() if status.startswith("5")),
            "megabytes_each_minute": list(
                {int(seconds / 60): round(megabytes) for seconds, megabytes, _ in reversed(self.samples)}.values()
            )[::-1],
            "megabytes_after_warm_up": round(memory[0]),
            "megabytes_at_the_end": round(memory[-1]),
            "median_of_second_half_minus_first": round(
                statistics.median(memory[half:]) - statistics.median(memory[:half])
            ),
            "megabytes_per_hour": round(slope),
            "megabytes_per_hour_in_the_second_half": round(
                statistics.linear_regression([seconds / 3600 for seconds in times[half:]], memory[half:]).slope
            ),
            "descriptors_after_warm_up": statistics.median(descriptors[:30]),
            "descriptors_at_the_end": statistics.median(descriptors[-30:]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/benchmarks.md and the figures as JSON"
    )
    options = parser.parse_args()
    load = {"load_average": round(os.getloadavg()[0], 1)}  # of other work on the machine
    with ServerProcess() as server:
        soak = SoakTest(server, options.minutes)
        counts = asyncio.run(soak.run())
        counts["errors_in_the_log"] = server.log.count('"level": "error"')
        counts |= {
            f"lost_{number}": connection.describe(server.log)
            for number, connection in enumerate(soak.broken[:MAX_REPORTED], 1)
        }
    parts = [("machine", load), ("soak", counts)]
    print(format_figures(parts))
    if options.write:
        write_results("soak", format_figures(parts), {**describe_machine(), **load, "soak": counts})


if __name__ == "__main__":
    main()
