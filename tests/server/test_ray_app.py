"""Two replicas behind Ray Serve, as `serve run` starts them, and one of them killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.server.test_end_to_end import NAME, SCENES, greedy, question, wait_until_ready

SERVE = Path(sys.executable).with_name("serve")
REPLICA = re.compile(r'replica="(\w+)"')


class Cluster:
    def __init__(self, handle: subprocess.Popen[bytes], url: str) -> None:
        self.handle = handle
        self.url = url

    @property
    def replicas(self) -> list[psutil.Process]:
        processes = psutil.Process(self.handle.pid).children(recursive=True)
        return [process for process in processes if "ServeReplica:onlyseen:Replica" in process.name()]


@pytest.fixture
def _only_fake_strategies() -> None:
    """The installed ones, here."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: its name is too long for Ray's sockets.
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        application = {"name": "onlyseen", "route_prefix": "/", "import_path": "server.ray_app:application"}
        wanted = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [application | {"args": {"min_replicas": "2", "cpus": "0.5"}}],
        }
        file = Path(folder) / "serve.yaml"
        file.write_text(yaml.safe_dump(wanted))
        free.close()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "ONLYSEEN_DEVICE": "cpu",
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        log = (Path(folder) / "serve.log").open("wb")
        with log, subprocess.Popen([SERVE, "run", file], env=environment, stdout=log, stderr=log) as handle:
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until_ready(url)
                wait_for_both(url)
                yield Cluster(handle, url)
            finally:
                handle.send_signal(signal.SIGTERM)
                handle.wait(timeout=60)


def wait_for_both(url: str) -> None:
    """The first is ready before the second."""
    end = time.monotonic() + 60
    while len(set(REPLICA.findall(httpx.get(f"{url}/metrics").text))) < 2:
        assert time.monotonic() < end, "there is one replica"
        time.sleep(0.5)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120, limits=limits) as client:
        yield client


def long(at: int, tokens: int, **fields: Any) -> dict[str, Any]:
    return greedy("vcd", SCENES[at % len(SCENES)], max_tokens=tokens, ignore_eos=True, **fields)


async def whole(client: httpx.AsyncClient, at: int) -> tuple[int, int]:
    """(status, tokens)."""
    response = await client.post("/v1/chat/completions", json=long(at, 80))
    return response.status_code, response.json().get("usage", {}).get("completion_tokens")


async def figures(client: httpx.AsyncClient, name: str) -> list[float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"onlyseen_{name}{{")]


class Streamed:
    def __init__(self, client: httpx.AsyncClient, at: int) -> None:
        self.begun = asyncio.Event()
        self.end = asyncio.create_task(self._read(client, long(at, 400, stream=True)))

    async def _read(self, client: httpx.AsyncClient, fields: dict[str, Any]) -> str:
        """The last line."""
        last = ""
        async with client.stream("POST", "/v1/chat/completions", json=fields) as response:
            async for line in response.aiter_lines():
                self.begun.set()
                last = line or last
        return last


async def test_a_door_answers_as_the_server_does(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=greedy("agla"), headers={"x-request-id": "mine"})
    assert response.json()["onlyseen"]["branches"] == ["agla/local"]
    assert response.headers.get_list("x-request-id") == ["mine"]
    for path, code in [("/v1/models/other", "model_not_found"), ("/v1/files", "unsupported"), ("/nothing", None)]:
        assert (await client.get(path)).json()["error"]["code"] == code
    large = await client.post("/v1/chat/completions", content=b" " * 20_000_001)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


async def test_the_metrics_are_those_of_all_replicas(client: httpx.AsyncClient) -> None:
    """On every page, the same two; else their figures would alternate for Prometheus."""
    pages = [(await client.get("/metrics")).text for _ in range(3)]
    assert len({frozenset(REPLICA.findall(page)) for page in pages}) == 1
    assert len(await figures(client, "process_resident_memory_bytes")) == 2
    before = sum(await figures(client, "prompt_tokens_total"))
    assert [await whole(client, at) for at in range(2)] == [(200, 80)] * 2
    assert sum(await figures(client, "prompt_tokens_total")) > before


async def test_a_client_that_leaves_frees_its_rows(client: httpx.AsyncClient) -> None:
    fields = greedy("plain", messages=question(SCENES[0]), max_tokens=1500, ignore_eos=True, stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=fields) as response:
        await anext(response.aiter_lines())
    await asyncio.sleep(0.5)
    assert set(await figures(client, "num_requests_running")) <= {0.0}


async def test_what_was_not_streaming_from_a_replica_outlives_it(cluster: Cluster, client: httpx.AsyncClient) -> None:
    streams = [Streamed(client, at) for at in range(6)]
    await asyncio.gather(*(stream.begun.wait() for stream in streams))
    answers = [asyncio.create_task(whole(client, at)) for at in range(16)]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in answers)
    cluster.replicas[0].kill()
    assert await asyncio.gather(*answers) == [(200, 80)] * 16
    ends = [await stream.end for stream in streams]
    assert "data: [DONE]" in ends, "those of the other replica"
    (broken,) = {end for end in ends if end != "data: [DONE]"}
    assert '"type":"server_error","param":null,"code":"unavailable"' in broken
    async with asyncio.timeout(60):
        while len(cluster.replicas) < 2:  # noqa: ASYNC110 - Ray starts another, and tells nobody here
            await asyncio.sleep(0.5)
    listed = await client.get("/v1/models")
    assert NAME in listed.text
