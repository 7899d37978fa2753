"""Overhead of the server over its engine, per request and per streamed token.

    python -m bench.overhead --write

The same engine answers the same question in turn without the server, through it, and through it as a stream. The client
is a socket in a process of its own. So its time is not measured, and it does not share the server's interpreter.
"""

import argparse
import asyncio
import base64
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import torch
import uvicorn
import uvloop
from PIL import Image

from bench.harness.docs_page import write_results
from bench.harness.models import EMBEDDED
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import build
from decoding.requests import GenerateRequest, ImageInput, Prompt, SamplingParams
from server.app import create_app
from server.observability import logs
from server.settings import Settings

QUESTION = "Please describe this image in detail."
SCENE = EMBEDDED / "samples" / "kitchen.png"


class ServedEngine:
    """An engine with a server around it, in a thread."""

    def __init__(self) -> None:
        self.engine = HFEngine(HFSettings(str(EMBEDDED / "model"), device="cpu"))
        self.loop: asyncio.AbstractEventLoop
        app = create_app(Settings(device="cpu", playground="off"), lambda _: self.engine)
        config = uvicorn.Config(app, port=0, http="h11", log_level="warning", access_log=False)
        self.server, listener = uvicorn.Server(config), config.bind_socket()
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        app.state.service.on_startup_finished = lambda _: ready.set()
        self.thread = threading.Thread(target=self._run, args=(listener,))
        self.thread.start()
        self.client = ProcessPoolExecutor(1, get_context("spawn"))
        ready.wait()

    def _run(self, listener: socket.socket) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve(sockets=[listener])

        uvloop.run(serve())

    def time_engine(self, image: ImageInput, tokens: int) -> float:
        """Return the seconds of an answer without the server, with a strategy."""

        async def answer() -> float:
            started_at = time.perf_counter()
            async with StrategyRunner(build("plain", {}), self.engine) as runner:
                outcome = await runner.resolve(
                    GenerateRequest(Prompt.from_text(QUESTION, image), SamplingParams(tokens, ignore_eos=True))
                )
                await collect_answer(runner.stream(outcome))
            return time.perf_counter() - started_at

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result()

    def time_server(self, body: dict[str, Any]) -> float:
        """Measure a request from the first byte sent to the last byte received.

        Args:
            body: JSON body.

        Returns:
            Seconds.

        Raises:
            RuntimeError: The answer is not complete.
        """
        seconds, response = self.client.submit(send_raw_request, self.port, json.dumps(body).encode()).result()
        if b"200 OK" not in response[:20] or (body.get("stream") and b"[DONE]" not in response):
            raise RuntimeError(response[:300].decode())
        return seconds

    def close(self) -> None:
        self.client.shutdown()
        self.server.should_exit = True
        self.thread.join()


def send_raw_request(port: int, content: bytes) -> tuple[float, bytes]:
    """Post a body and return (seconds, response bytes)."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Length: {len(content)}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started_at = time.perf_counter()
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        response = b""
        while chunk := connection.recv(1 << 16):
            response += chunk
        return time.perf_counter() - started_at, response


def measure(rounds: int, tokens: int) -> dict[str, Any]:
    """Measure all sides in turn."""
    image = ImageInput(Image.open(SCENE).convert("RGB"))
    url = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]

    def build_body(count: int, **fields: Any) -> dict[str, Any]:
        request = {"model": "onlyseen-tiny", "messages": [{"role": "user", "content": parts}], "temperature": 0}
        return request | {"max_tokens": count, "ignore_eos": True} | fields

    served = ServedEngine()
    sides: dict[str, Callable[[], float]] = {
        "alone, 1 token": lambda: served.time_engine(image, 1),
        "served, 1 token": lambda: served.time_server(build_body(1)),
        "alone": lambda: served.time_engine(image, tokens),
        "served": lambda: served.time_server(build_body(tokens)),
        "streamed": lambda: served.time_server(build_body(tokens, stream=True)),
    }
    try:
        for side in sides.values():
            side()
        times: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            # Every other round runs backwards, so that no side always follows the same one.
            for name in list(sides)[:: 1 if number % 2 else -1]:
                started_at = time.process_time()
                times[name].append(1000 * sides[name]())
                cpu[name].append(1000 * (time.process_time() - started_at))
    finally:
        served.close()

    return {
        "milliseconds": {name: round(statistics.median(each), 3) for name, each in times.items()},
        "waited": summarize_overhead(times, tokens),
        "computed": summarize_overhead(cpu, tokens),
        "rounds": rounds,
        "tokens": tokens,
        "load": round(os.getloadavg()[0], 1),
    }


def summarize_overhead(times: dict[str, list[float]], tokens: int) -> dict[str, float]:
    """Return medians of the differences within rounds, in milliseconds."""

    def compute_median_difference(name: str, baseline: str) -> float:
        return statistics.median(a - b for a, b in zip(times[name], times[baseline], strict=True))

    return {
        "request": round(compute_median_difference("served, 1 token", "alone, 1 token"), 3),
        "long_request": round(compute_median_difference("served", "alone"), 3),
        "streamed_token": round(
            (
                compute_median_difference("streamed", "alone")
                - compute_median_difference("served, 1 token", "alone, 1 token")
            )
            / tokens,
            4,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model has one core, the server the other
    logs.configure_logging()
    figures = measure(options.rounds, options.tokens)
    wall_clock, computed = figures["waited"], figures["computed"]
    labels = {
        "request": ("one token", 5),
        "long_request": (f"{options.tokens} tokens, not streamed", 5),
        "streamed_token": ("each streamed token", 0.3),
    }
    rows = [
        f"| {label} | {goal} | {wall_clock[key]:.2f} | {computed[key]:.2f} |" for key, (label, goal) in labels.items()
    ]
    table = "\n".join(["| request | goal, ms | added latency, ms | added CPU time, ms |", "|---|---|---|---|", *rows])
    print(table)
    if options.write:
        figures["date"], figures["machine"] = (
            str(date.today()),
            f"a CPU, {os.cpu_count()} cores, load {figures['load']}",
        )
        figures["versions"] = {name: version(name) for name in ("onlyseen", "torch", "fastapi", "uvicorn")}
        write_results("overhead", table, figures)


if __name__ == "__main__":
    main()
