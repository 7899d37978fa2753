"""Two replicas behind Ray Serve, started by `serve run`. One test kills a replica."""

from __future__ import annotations

import asyncio
import hashlib
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

from tests.server.harness import NAME, SCENES, build_messages, greedy_request, wait_until_ready

SERVE = Path(sys.executable).with_name("serve")
REPLICA = re.compile(r'replica="(\w+)"')


class Cluster:
    def __init__(self, handle: subprocess.Popen[bytes], url: str, data_dir: Path) -> None:
        self.handle = handle
        self.url = url
        self.data_dir = data_dir

    @property
    def replicas(self) -> list[psutil.Process]:
        processes = psutil.Process(self.handle.pid).children(recursive=True)
        return [process for process in processes if "ServeReplica:onlyseen:Replica" in process.name()]


@pytest.fixture
def _use_fake_strategies() -> None:
    """Use the installed strategies in this module."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: its name is too long for Ray's sockets.
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        application = {"name": "onlyseen", "route_prefix": "/", "import_path": "server.ray_serve:application"}
        config = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [application | {"args": {"min_replicas": "2", "cpus": "0.5"}}],
        }
        file = Path(folder) / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        free.close()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "ONLYSEEN_DATA_DIR": f"{folder}/data",  # replicas ignore it, because only one of them could use it
            "ONLYSEEN_DEVICE": "cpu",
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        log = (Path(folder) / "serve.log").open("wb")
        with log, subprocess.Popen([SERVE, "run", file], env=environment, stdout=log, stderr=log) as handle:
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until_ready(url, 300)  # another test may run a cluster at the same time
                wait_for_both_replicas(url)
                yield Cluster(handle, url, Path(folder, "data"))
            finally:
                handle.send_signal(signal.SIGTERM)
                handle.wait(timeout=60)


def wait_for_both_replicas(url: str) -> None:
    """Wait for the second replica, because /ready needs the first only."""
    deadline = time.monotonic() + 60
    while len(set(REPLICA.findall(httpx.get(f"{url}/metrics").text))) < 2:
        assert time.monotonic() < deadline, "there is only one replica"
        time.sleep(0.5)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120, limits=limits) as client:
        yield client


def make_long_request(index: int, tokens: int, **fields: Any) -> dict[str, Any]:
    return greedy_request("vcd", SCENES[index % len(SCENES)], max_tokens=tokens, ignore_eos=True, **fields)


async def complete(client: httpx.AsyncClient, index: int) -> tuple[int, int]:
    """Return the status and the number of tokens of an answer."""
    response = await client.post("/v1/chat/completions", json=make_long_request(index, 80))
    return response.status_code, response.json().get("usage", {}).get("completion_tokens")


async def read_samples(client: httpx.AsyncClient, name: str) -> list[float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"onlyseen_{name}{{")]


class StreamedAnswer:
    def __init__(self, client: httpx.AsyncClient, index: int) -> None:
        self.has_started = asyncio.Event()
        self.last_line = asyncio.create_task(self._read(client, make_long_request(index, 400, stream=True)))

    async def _read(self, client: httpx.AsyncClient, fields: dict[str, Any]) -> str:
        """Read the stream and return its last line."""
        last = ""
        async with client.stream("POST", "/v1/chat/completions", json=fields) as response:
            async for line in response.aiter_lines():
                self.has_started.set()
                last = line or last
        return last


async def test_proxy_answers_like_one_server(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=greedy_request("agla"), headers={"x-request-id": "mine"})
    assert response.json()["onlyseen"]["branches"] == ["agla/local"]
    assert response.headers.get_list("x-request-id") == ["mine"]
    for path, code in [("/v1/models/other", "model_not_found"), ("/v1/files", "unsupported"), ("/nothing", None)]:
        assert (await client.get(path)).json()["error"]["code"] == code
    refusal = (await client.post("/v1/batches", json={})).json()["error"]["message"]
    assert "onlyseen-batch run" in refusal
    large = await client.post("/v1/chat/completions", content=b" " * 20_000_001)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


def test_replicas_do_not_use_one_data_folder(cluster: Cluster) -> None:
    assert not cluster.data_dir.exists()


async def test_metrics_page_holds_all_replicas(client: httpx.AsyncClient) -> None:
    """Every page holds the same two replicas. Otherwise their values would alternate for Prometheus."""
    pages = [(await client.get("/metrics")).text for _ in range(3)]
    assert len({frozenset(REPLICA.findall(page)) for page in pages}) == 1
    assert len(await read_samples(client, "process_resident_memory_bytes")) == 2
    before = sum(await read_samples(client, "prompt_tokens_total"))
    assert [await complete(client, index) for index in range(2)] == [(200, 80)] * 2
    assert sum(await read_samples(client, "prompt_tokens_total")) > before


async def test_each_image_is_read_by_one_replica(client: httpx.AsyncClient) -> None:
    """Requests about one image have one session id, so that one replica has the image in its cache."""
    before = sum(await read_samples(client, "image_cache_misses"))
    for _ in range(4):
        for scene in SCENES[:6]:
            fields = greedy_request("plain", messages=build_messages(scene), max_tokens=1)
            session = {"x-session-id": hashlib.sha256(scene.read_bytes()).hexdigest()}
            assert (await client.post("/v1/chat/completions", json=fields, headers=session)).status_code == 200
    assert sum(await read_samples(client, "image_cache_misses")) - before <= 6


async def test_disconnected_client_frees_its_rows(client: httpx.AsyncClient) -> None:
    fields = greedy_request("plain", messages=build_messages(SCENES[0]), max_tokens=1500, ignore_eos=True, stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=fields) as response:
        await anext(response.aiter_lines())
    await asyncio.sleep(0.5)
    assert set(await read_samples(client, "num_requests_running")) <= {0.0}


async def test_requests_not_yet_streaming_survive_a_dead_replica(cluster: Cluster, client: httpx.AsyncClient) -> None:
    streams = [StreamedAnswer(client, index) for index in range(6)]
    await asyncio.gather(*(stream.has_started.wait() for stream in streams))
    answers = [asyncio.create_task(complete(client, index)) for index in range(16)]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in answers)
    cluster.replicas[0].kill()
    assert await asyncio.gather(*answers) == [(200, 80)] * 16
    last_lines = [await stream.last_line for stream in streams]
    assert "data: [DONE]" in last_lines, "the streams of the other replica"
    (error_line,) = {line for line in last_lines if line != "data: [DONE]"}
    assert '"type":"server_error","param":null,"code":"unavailable"' in error_line
    async with asyncio.timeout(60):
        while len(cluster.replicas) < 2:  # noqa: ASYNC110 - there is no event for the replica that Ray starts
            await asyncio.sleep(0.5)
    listed = await client.get("/v1/models")
    assert NAME in listed.text
