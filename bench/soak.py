"""Hours of everyday trouble in a few minutes: mixed pictures and strategies, clients that leave, readers that dawdle.

    python -m bench.soak --minutes 20 --write

What must not happen: an answer of 5xx, rows that stay, memory or file descriptors that grow after the warm-up.
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

from bench.load import table
from bench.page import write
from bench.per_token import machine
from bench.process import Server
from bench.questions import any_request

CLIENTS = 8
WARM_UP = 0.25  # of the time; memory is compared after it
TOLD = 5  # broken connections that the figures tell of one by one


@dataclass(frozen=True)
class Lost:
    """A connection that broke, as the client saw it."""

    habit: str
    request_id: str
    error: Exception
    seconds: float  # since the request began

    def told(self, log: str) -> str:
        """With what the server's log has on it."""
        causes = []
        cause: BaseException | None = self.error
        while cause is not None:
            causes.append(repr(cause))
            cause = cause.__cause__ or cause.__context__
        lines = [line for line in log.splitlines() if f'"{self.request_id}"' in line]
        return f"{self.habit} after {self.seconds:.2f} s: {' from '.join(causes)}; log: {lines or 'nothing'}"


class Soak:
    """Clients of five kinds against one server, until the time is over."""

    def __init__(self, server: Server, minutes: float) -> None:
        self.server = server
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes
        self.told: Counter[str] = Counter()
        self.lost: list[Lost] = []
        self.samples: list[tuple[float, float, int]] = []  # (seconds, megabytes, descriptors)

    async def run(self) -> dict[str, Any]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=300, limits=limits) as client:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.watch())
                for number in range(CLIENTS):
                    group.create_task(self.live(client, number))
            await asyncio.sleep(2)
            rows = {
                name: await self.server.metric(client, name)
                for name in ("num_requests_running", "num_requests_waiting")
            }
            answer = await client.post("/v1/chat/completions", json=any_request(random.Random(0)))
        return self.figures() | {"left_behind": int(sum(rows.values())), "answers_afterwards": answer.status_code}

    async def live(self, client: httpx.AsyncClient, number: int) -> None:
        chance = random.Random(number)
        habits = (self.ask, self.ask, self.stream, self.leave, self.dawdle, self.blunder)
        for turn in count():
            if time.monotonic() >= self.end:
                break
            habit, request_id, began = chance.choice(habits), f"client-{number}-{turn}", time.monotonic()
            try:
                await habit(client, chance, {"x-request-id": request_id})
            except (httpx.TransportError, OSError) as error:
                self.told[f"connections lost ({type(error).__name__})"] += 1
                self.lost.append(Lost(habit.__name__, request_id, error, time.monotonic() - began))

    async def ask(self, client: httpx.AsyncClient, chance: random.Random, headers: dict[str, str]) -> None:
        response = await client.post("/v1/chat/completions", json=any_request(chance), headers=headers)
        self.told[str(response.status_code)] += 1

    async def stream(self, client: httpx.AsyncClient, chance: random.Random, headers: dict[str, str]) -> None:
        body = any_request(chance) | {"stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            lines = [line async for line in response.aiter_lines() if line]
            whole = response.status_code == 200 and lines[-1] == "data: [DONE]"
        self.told["streams that ended well" if whole else f"broken streams ({response.status_code})"] += 1

    async def leave(self, client: httpx.AsyncClient, chance: random.Random, headers: dict[str, str]) -> None:
        """Streamed or not, after a moment."""
        body = any_request(chance) | {"stream": chance.random() < 0.5, "max_tokens": 64, "ignore_eos": True}
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0.01, 0.5)):
                await client.post("/v1/chat/completions", json=body, headers=headers)
        self.told["clients that left"] += 1

    async def dawdle(self, _: httpx.AsyncClient, chance: random.Random, headers: dict[str, str]) -> None:
        """A raw connection that takes a few bytes at a time."""
        body = json.dumps(any_request(chance) | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        said = {**headers, "host": host, "content-type": "application/json", "content-length": len(body)}
        lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
        writer.write("\r\n".join([*lines, "connection: close\r\n\r\n"]).encode() + body)
        until = time.monotonic() + 5
        while time.monotonic() < until and await reader.read(64):  # noqa: ASYNC110 - it is to be slow
            await asyncio.sleep(0.05)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.told["slow readers"] += 1

    async def blunder(self, client: httpx.AsyncClient, chance: random.Random, headers: dict[str, str]) -> None:
        body = any_request(chance) | chance.choice(
            [
                {"temperature": -1},
                {"nonsense": 1},
                {"messages": []},
                {"model": "other"},
                {"decoding": {"vcd": {"a": 1}}},
            ]
        )
        response = await client.post("/v1/chat/completions", json=body, headers=headers)
        self.told[str(response.status_code)] += 1

    async def watch(self) -> None:
        while time.monotonic() < self.end:
            self.samples.append((time.monotonic() - self.began, self.server.megabytes, self.server.descriptors))
            await asyncio.sleep(1)

    def figures(self) -> dict[str, Any]:
        warm = [sample for sample in self.samples if sample[0] > WARM_UP * (self.end - self.began)]
        hours, memory, descriptors = [[sample[part] for sample in warm] for part in range(3)]
        slope = statistics.linear_regression([seconds / 3600 for seconds in hours], memory).slope
        half = len(memory) // 2
        return {
            "minutes": round((self.end - self.began) / 60, 1),
            **dict(sorted(self.told.items())),
            "answers_of_5xx": sum(count for status, count in self.told.items() if status.startswith("5")),
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
                statistics.linear_regression([seconds / 3600 for seconds in hours[half:]], memory[half:]).slope
            ),
            "descriptors_after_warm_up": statistics.median(descriptors[:30]),
            "descriptors_at_the_end": statistics.median(descriptors[-30:]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, and JSON beside it")
    chosen = parser.parse_args()
    busy = {"load_average": round(os.getloadavg()[0], 1)}  # what else the machine is doing
    with Server() as server:
        soak = Soak(server, chosen.minutes)
        told = asyncio.run(soak.run())
        told["errors_in_the_log"] = server.log.count('"level": "error"')
        told |= {f"lost_{at}": lost.told(server.log) for at, lost in enumerate(soak.lost[:TOLD], 1)}
    parts = [("machine", busy), ("soak", told)]
    print(table(parts))
    if chosen.write:
        write("soak", table(parts), {**machine(), **busy, "soak": told})


if __name__ == "__main__":
    main()
