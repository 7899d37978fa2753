"""What the server adds to its engine: per request, and per streamed token.

    python -m bench.overhead --write

The same engine is asked the same question in turn: without the server, through it, and through it as a stream. The
client is a socket in a process of its own, so that its time is not measured, and its interpreter is not ours.
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

from bench.models import EMBEDDED
from bench.page import write
from decoding.ask import Ask, Picture, Prompt, Sampling
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.registry import build
from decoding.stack import Run, collect
from server import logs
from server.app import create_app
from server.settings import Settings

QUESTION = "Please describe this image in detail."
SCENE = EMBEDDED / "samples" / "kitchen.png"


class Served:
    """An engine with a server around it, in a thread."""

    def __init__(self) -> None:
        self.engine = HFEngine(HFSettings(str(EMBEDDED / "model"), device="cpu"))
        self.loop: asyncio.AbstractEventLoop
        app = create_app(Settings(device="cpu", playground="off"), lambda _: self.engine)
        config = uvicorn.Config(app, port=0, http="h11", log_level="warning", access_log=False)
        self.server, listening = uvicorn.Server(config), config.bind_socket()
        self.port = listening.getsockname()[1]
        ready = threading.Event()
        app.state.service.on_settled = lambda _: ready.set()
        self.thread = threading.Thread(target=self._run, args=(listening,))
        self.thread.start()
        self.client = ProcessPoolExecutor(1, get_context("spawn"))
        ready.wait()

    def _run(self, listening: socket.socket) -> None:
        async def run() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve(sockets=[listening])

        uvloop.run(run())

    def alone(self, picture: Picture, tokens: int) -> float:
        """Seconds of an answer without the server, strategy and all."""

        async def one() -> float:
            began = time.perf_counter()
            async with Run(build("plain", {}), self.engine) as run:
                outcome = await run.resolve(Ask(Prompt.of(QUESTION, picture), Sampling(tokens, ignore_eos=True)))
                await collect(run.stream(outcome))
            return time.perf_counter() - began

        return asyncio.run_coroutine_threadsafe(one(), self.loop).result()

    def through(self, body: dict[str, Any]) -> float:
        """Seconds from the first byte sent to the last byte read."""
        spent, read = self.client.submit(exchange, self.port, json.dumps(body).encode()).result()
        if b"200 OK" not in read[:20] or (body.get("stream") and b"[DONE]" not in read):
            raise RuntimeError(read[:300].decode())
        return spent

    def close(self) -> None:
        self.client.shutdown()
        self.server.should_exit = True
        self.thread.join()


def exchange(port: int, content: bytes) -> tuple[float, bytes]:
    """(seconds, what came)."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", port)) as line:
        began = time.perf_counter()
        line.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        read = b""
        while piece := line.recv(1 << 16):
            read += piece
        return time.perf_counter() - began, read


def measure(rounds: int, tokens: int) -> dict[str, Any]:
    picture = Picture(Image.open(SCENE).convert("RGB"))
    url = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]

    def body(count: int, **fields: Any) -> dict[str, Any]:
        asked = {"model": "onlyseen-tiny", "messages": [{"role": "user", "content": parts}], "temperature": 0}
        return asked | {"max_tokens": count, "ignore_eos": True} | fields

    served = Served()
    sides: dict[str, Callable[[], float]] = {
        "alone, 1 token": lambda: served.alone(picture, 1),
        "served, 1 token": lambda: served.through(body(1)),
        "alone": lambda: served.alone(picture, tokens),
        "served": lambda: served.through(body(tokens)),
        "streamed": lambda: served.through(body(tokens, stream=True)),
    }
    try:
        for side in sides.values():
            side()
        times: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            # Every other round backwards, so that none always comes after the same one.
            for name in list(sides)[:: 1 if number % 2 else -1]:
                began = time.process_time()
                times[name].append(1000 * sides[name]())
                cpu[name].append(1000 * (time.process_time() - began))
    finally:
        served.close()

    return {
        "milliseconds": {name: round(statistics.median(each), 3) for name, each in times.items()},
        "waited": added(times, tokens),
        "computed": added(cpu, tokens),
        "rounds": rounds,
        "tokens": tokens,
        "load": round(os.getloadavg()[0], 1),
    }


def added(times: dict[str, list[float]], tokens: int) -> dict[str, float]:
    """Medians of the rounds' differences, milliseconds."""

    def more(name: str, than: str) -> float:
        return statistics.median(a - b for a, b in zip(times[name], times[than], strict=True))

    return {
        "request": round(more("served, 1 token", "alone, 1 token"), 3),
        "long_request": round(more("served", "alone"), 3),
        "streamed_token": round((more("streamed", "alone") - more("served, 1 token", "alone, 1 token")) / tokens, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model has one core, the server the other
    logs.configure()
    figures = measure(options.rounds, options.tokens)
    waited, computed = figures["waited"], figures["computed"]
    named = {
        "request": ("a request for one token", 5),
        "long_request": (f"a request for {options.tokens} tokens, not streamed", 5),
        "streamed_token": ("each streamed token", 0.3),
    }
    rows = [f"| {told} | {goal} | {waited[key]:.2f} | {computed[key]:.2f} |" for key, (told, goal) in named.items()]
    table = "\n".join(["| what | goal, ms | more to wait, ms | more processor time, ms |", "|---|---|---|---|", *rows])
    print(table)
    if options.write:
        figures["date"], figures["machine"] = (
            str(date.today()),
            f"a CPU, {os.cpu_count()} cores, load {figures['load']}",
        )
        figures["versions"] = {name: version(name) for name in ("onlyseen", "torch", "fastapi", "uvicorn")}
        write("overhead", table, figures)


if __name__ == "__main__":
    main()
