"""The images and what stands around them, as far as that can be checked without building: no engine is needed."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from decoding.vllm_engine.counters import Counters
from server.metrics import Metrics
from server.picture_cache import PictureCache
from server.settings import PREFIX, Settings
from tests.image import DOCKER, ROOT, image, serves
from tests.program import program
from tests.server.fakes import FakeEngine

FILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run([linter, "--config", DOCKER / "hadolint.yaml", file], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_images_are_pinned_checked_and_not_run_by_root(file: Path) -> None:
    text = file.read_text()
    assert re.search(r"^FROM [\w/.-]+:[\w.-]*\d+\.\d+\.\d+[\w.-]*$", text, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    for source, *_ in re.findall(r"^COPY ([\w./-]+)( [\w./-]+)* \S+$", text, re.MULTILINE):
        assert (ROOT / source).exists(), source
    for name in re.findall(rf"\b{PREFIX}(\w+)", text):
        assert name.lower() in Settings.model_fields


def test_what_compose_mounts_and_builds_is_there() -> None:
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


class Backend(BaseHTTPRequestHandler):
    """Two of them in turn: the first that is asked hangs up without a word, as one does that is killed, or says 503."""

    asked: ClassVar[list[str]] = []
    stops: ClassVar[bool] = False

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.asked.append(self.path)
        answers = len(self.asked) % 2 == 0
        if answers or self.stops:
            self.send_response(200 if answers else 503)
            self.send_header("content-length", "0")
            self.end_headers()
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """nginx as it is shipped, in front of two servers."""
    nginx = program("nginx-light", "nginx")
    with ExitStack() as running, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        lines = ""
        for _ in range(2):
            server = running.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Backend))
            threading.Thread(target=server.serve_forever).start()
            running.callback(server.shutdown)
            lines += f"server 127.0.0.1:{server.server_port};\n"
        text = re.sub(r"server server:8000.*;", lines, (DOCKER / "nginx.conf").read_text())
        config = tmp_path / "nginx.conf"
        config.write_text(text.replace("/tmp/", f"{tmp_path}/").replace("listen 8080", f"listen 127.0.0.1:{port}"))
        checked = subprocess.run([nginx, "-t", "-c", config], capture_output=True, text=True)
        assert "test is successful" in checked.stderr, checked.stderr
        handle = running.enter_context(subprocess.Popen([nginx, "-c", config, "-g", "daemon off;"]))
        running.callback(handle.terminate)
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(("stops", "status"), [(False, 502), (True, 503)])
def test_a_question_is_put_to_the_next_server_and_a_file_is_not(
    proxy: str, stops: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backend, "stops", stops)
    Backend.asked.clear()
    assert httpx.post(f"{proxy}/v1/chat/completions", json={}).status_code == 200
    assert httpx.post(f"{proxy}/v1/files", json={}).status_code == status
    assert Backend.asked == ["/v1/chat/completions"] * 2 + ["/v1/files"]


async def test_the_dashboard_shows_metrics_that_exist() -> None:
    engine = FakeEngine()
    engine.counted = {f"gang_{name}": count for name, count in Counters().told().items()}
    metrics = Metrics(PictureCache(0))
    metrics.watch("plain")
    await metrics.engine.refresh(engine)
    from prometheus_client import generate_latest

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


def test_the_eval_image_installs_and_starts(tmp_path: Path) -> None:
    with image("eval", tmp_path).start("--help") as evaluation:
        told, _ = evaluation.communicate()
    assert evaluation.returncode == 0
    assert all(command in told for command in ("run", "score", "verify"))


def test_the_servers_image_installs_and_is_healthy(tmp_path: Path) -> None:
    serves(image("hf", tmp_path), ONLYSEEN_DEVICE="cpu")
