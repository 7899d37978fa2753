"""Tests of the Dockerfiles, the compose file, nginx and the dashboard, without Docker; no engine is needed."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.nginx import run_nginx
from decoding.vllm_engine.core.gangs import GangCounters
from server.media.images import ImageCache
from server.observability.metrics import Metrics
from server.settings import PREFIX, Settings
from tests.docker_image import DOCKER, ROOT, assert_serves, build_image
from tests.server.fakes import FakeEngine
from tests.system_packages import require_program

FILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_dockerfile_passes_hadolint(file: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    completed = subprocess.run([linter, "--config", DOCKER / "hadolint.yaml", file], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_dockerfile_pins_its_base_has_a_health_check_and_a_plain_user(file: Path) -> None:
    text = file.read_text()
    assert re.search(r"^FROM [\w/.-]+:[\w.-]*\d+\.\d+\.\d+[\w.-]*$", text, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    for source, *_ in re.findall(r"^COPY ([\w./-]+)( [\w./-]+)* \S+$", text, re.MULTILINE):
        assert (ROOT / source).exists(), source
    for name in re.findall(rf"\b{PREFIX}(\w+)", text):
        assert name.lower() in Settings.model_fields


def test_compose_file_names_existing_files_and_settings() -> None:
    assert {"cpu", "gpu", "eval", "observability"} == {
        profile for service in COMPOSE["services"].values() for profile in service["profiles"]
    }
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), name
        for volume in service.get("volumes", []):
            if volume.startswith("./docker"):
                assert (ROOT / volume.split(":")[0]).exists(), volume
        for variable in service.get("environment", {}):
            assert not variable.startswith(PREFIX) or variable.removeprefix(PREFIX).lower() in Settings.model_fields


def test_each_server_has_a_data_volume_of_its_own() -> None:
    servers = {name: service for name, service in COMPOSE["services"].items() if "onlyseen-" in service["image"]}
    volumes = [
        volume.removesuffix(":/data")
        for name in servers.keys() - {"eval"}
        for volume in COMPOSE["services"][name]["volumes"]
        if volume.endswith(":/data")
    ]
    assert sorted(volumes) == ["cpu-data", "gpu-data"]
    assert set(COMPOSE["volumes"]) == {*volumes, "prometheus-data"}


class LoadingServer(BaseHTTPRequestHandler):
    """Is alive but not ready, until `is_ready` is set."""

    is_ready: ClassVar[bool] = False

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" or self.is_ready else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_compose_waits_until_the_model_is_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPOSE["services"]["nginx"]["depends_on"][name]["condition"] == "service_healthy"
    kind, *command = COMPOSE["services"][name]["healthcheck"]["test"]
    assert kind == "CMD"
    with ThreadingHTTPServer(("127.0.0.1", 0), LoadingServer) as server:
        threading.Thread(target=server.serve_forever).start()
        parts = [sys.executable, *(part.replace("8000", str(server.server_port)) for part in command[1:])]
        codes = [subprocess.run(parts, capture_output=True).returncode]
        monkeypatch.setattr(LoadingServer, "is_ready", True)
        codes.append(subprocess.run(parts, capture_output=True).returncode)
        server.shutdown()
    assert codes == [1, 0]


def test_cpu_profile_installs_the_cpu_build_of_torch() -> None:
    build = COMPOSE["services"]["cpu"]["build"]
    dockerfile = (ROOT / build["dockerfile"]).read_text()
    for argument, value in build["args"].items():
        assert f"ARG {argument}=" in dockerfile
        assert value.endswith("/whl/cpu")


class Backend(BaseHTTPRequestHandler):
    """Two backends. Of two requests, the first fails by a closed connection or a 503, unless `does_fail` is false."""

    paths: ClassVar[list[str]] = []
    ports: ClassVar[list[int]] = []
    is_stopping: ClassVar[bool] = False
    does_fail: ClassVar[bool] = True
    refusal: ClassVar[str | None] = None  # of uploads: "response" before the body is read, or "close"
    has_started: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        self.has_started.set()
        if self.refusal is not None and self.path == "/v1/files":
            self.close_connection = True
            if self.refusal == "response":
                self.send_response(401)
                self.send_header("content-length", "0")
                self.end_headers()
                self.rfile.read(int(self.headers["content-length"]))  # as the server does for some seconds
            return
        self.rfile.read(int(self.headers["content-length"]))
        self.paths.append(self.path)
        self.ports.append(self.server.server_port)  # type: ignore[attr-defined]
        is_second = len(self.paths) % 2 == 0 or not self.does_fail
        if is_second or self.is_stopping:
            self.send_response(200 if is_second else 503)
            self.send_header("content-length", "0")
            self.end_headers()
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def proxy() -> Iterator[str]:
    """Start nginx with the shipped configuration in front of two servers.

    Yields:
        URL of nginx.
    """
    nginx = require_program("nginx-light", "nginx")
    with ExitStack() as stack:
        ports = []
        for _ in range(2):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Backend))
            threading.Thread(target=server.serve_forever).start()
            stack.callback(server.shutdown)
            ports.append(server.server_port)
        yield stack.enter_context(run_nginx(str(nginx), ports))


@pytest.mark.parametrize(("is_stopping", "status"), [(False, 502), (True, 503)])
def test_nginx_retries_completions_on_the_next_server_but_not_uploads(
    proxy: str, is_stopping: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backend, "is_stopping", is_stopping)
    Backend.paths.clear()
    assert httpx.post(f"{proxy}/v1/chat/completions", json={}).status_code == 200
    assert httpx.post(f"{proxy}/v1/files", json={}).status_code == status
    assert Backend.paths == ["/v1/chat/completions"] * 2 + ["/v1/files"]


@pytest.mark.parametrize(("path", "starts_at_once"), [("/v1/files", True), ("/v1/chat/completions", False)])
def test_nginx_stores_no_upload(proxy: str, path: str, starts_at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of an upload reach the server as they arrive. Another body arrives first, so that it can be retried."""
    monkeypatch.setattr(Backend, "does_fail", False)
    Backend.has_started.clear()
    url = httpx.URL(proxy)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n".encode())
        connection.sendall(b"x" * 100_000)
        assert Backend.has_started.wait(10 if starts_at_once else 0.5) == starts_at_once
        connection.sendall(b"x" * 100_000)
        connection.settimeout(10)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_upload_is_refused_behind_nginx_before_it_is_read(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "refusal", "response")
    for size in (1, 1_000_000, 50_000_000):
        assert httpx.post(f"{proxy}/v1/files", content=b"x" * size).status_code == 401


def test_refused_uploads_take_no_server_out_of_use(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "refusal", "close")
    monkeypatch.setattr(Backend, "does_fail", False)
    for _ in range(20):
        assert httpx.post(f"{proxy}/v1/files", content=b"x" * 1_000_000).status_code == 502
    Backend.ports.clear()
    for _ in range(10):
        assert httpx.post(f"{proxy}/v1/chat/completions", json={}).status_code == 200
    assert len(set(Backend.ports)) == 2


def test_bodies_that_wait_in_nginx_are_bounded() -> None:
    folder = re.search(r"client_body_temp_path (\S+)/[\w-]+;", (DOCKER / "nginx.conf").read_text())
    assert folder is not None
    (bound,) = (each for each in COMPOSE["services"]["nginx"]["tmpfs"] if each.startswith(f"{folder[1]}:"))
    assert re.fullmatch(r"\S+:size=\d+[mg]", bound)


def test_documented_limit_bounds_the_unfinished_bodies_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    nginx = require_program("nginx-light", "nginx")
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "operations.md").read_text())
    (directives,) = re.findall(r"`(limit_conn_zone [^`]+)`", page)
    monkeypatch.setattr(Backend, "does_fail", False)
    with ExitStack() as stack:
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Backend))
        threading.Thread(target=server.serve_forever).start()
        stack.callback(server.shutdown)
        limited = directives.replace("clients 40", "clients 2")
        proxy = stack.enter_context(run_nginx(str(nginx), [server.server_port], limited))
        url = httpx.URL(proxy)
        for _ in range(2):
            connection = stack.enter_context(socket.create_connection((url.host, url.port or 80)))
            connection.sendall(b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n")
            connection.sendall(b"x" * 100_000)
        wait_for_status(f"{proxy}/v1/responses", 429)
    assert limited != directives


def wait_for_status(url: str, status: int) -> None:
    """Wait until nginx has read the headers of the other connections."""
    deadline = time.monotonic() + 10
    while httpx.post(url, json={}).status_code != status:
        assert time.monotonic() < deadline


def test_nginx_sends_all_requests_of_a_session_to_one_server(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "does_fail", False)
    url, by_session = f"{proxy}/v1/chat/completions", list[int]()
    with httpx.Client() as client:
        for session in range(100):
            Backend.ports.clear()
            for _ in range(3):
                assert client.post(url, json={}, headers={"x-session-id": f"image-{session}"}).status_code == 200
            (port,) = set(Backend.ports)
            by_session.append(port)
        Backend.ports.clear()
        for _ in range(10):
            assert client.post(url, json={}).status_code == 200
    assert len(set(Backend.ports)) == 2, "requests without a session"
    assert 25 <= by_session.count(by_session[0]) <= 75


async def test_dashboard_uses_existing_metrics() -> None:
    engine = FakeEngine()
    engine.counter_values = {f"gang_{name}": count for name, count in GangCounters().as_dict().items()}
    metrics = Metrics(ImageCache(0))
    metrics.track_request("plain")
    await metrics.engine_counters.refresh(engine)
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    known = {f"{family.name}{end}" for family in families for end in ("", "_total", "_bucket", "_sum", "_count")}
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "onlyseen.json").read_text())
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"onlyseen_\w+", target["expr"])
    }
    assert len(used) > 8
    assert used <= known


def test_eval_image_installs_and_starts(tmp_path: Path) -> None:
    with build_image("eval", tmp_path).start("--help") as process:
        help_text, _ = process.communicate()
    assert process.returncode == 0
    assert all(command in help_text for command in ("run", "score", "verify"))


def test_server_image_installs_and_becomes_healthy(tmp_path: Path) -> None:
    assert_serves(build_image("hf", tmp_path), ONLYSEEN_DEVICE="cpu")
