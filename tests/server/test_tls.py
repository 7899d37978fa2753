"""HTTPS with a certificate of the test, over the server's own protocol class."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import SecretStr, ValidationError

from bench.harness.nginx import run_nginx
from server import timed_protocol
from server.__main__ import create_config
from server.app import create_app
from server.settings import Settings
from server.timed_protocol import TimedH11Protocol
from tests.server.conftest import chat_request
from tests.server.fakes import FakeEngine
from tests.server.protocol_harness import CHUNKED, receive_all, serve_application, split_into_chunks
from tests.system_packages import require_program

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
NAME = "localhost"
KEY_FILE = "key.pem"


def create_certificate(folder: Path, *, password: str | None = None) -> tuple[Path, Path]:
    """Create a self-signed certificate for localhost, and its private key."""
    certificate, key = folder / "certificate.pem", folder / KEY_FILE
    cipher = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
    subprocess.run(
        [
            *(require_program("openssl", "openssl"), "req", "-x509", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={NAME}", "-days", "2"),
            *("-addext", f"subjectAltName=DNS:{NAME}", "-keyout", key, "-out", certificate, *cipher),
        ],
        capture_output=True,
        check=True,
    )
    return certificate, key


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return create_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def port(certificate: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[int]:
    """Serve a fake engine over HTTPS with the configuration of the command."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    settings = Settings(
        served_name="tiny", ssl_certfile=certificate[0], ssl_keyfile=certificate[1], port=0, header_timeout=0.5
    )
    app = create_app(settings, lambda _: FakeEngine())
    config = create_config(app, settings)
    config.loop = request.param
    server, listener = uvicorn.Server(config), config.bind_socket()
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not app.state.service.is_startup_finished:
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def connect(port: int, certificate: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificate))
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=NAME)


@pytest.mark.parametrize("stream", [False, True])
def test_requests_are_answered(port: int, certificate: tuple[Path, Path], stream: bool) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with httpx.Client(base_url=f"https://{NAME}:{port}", verify=context) as client:
        response = client.post("/v1/chat/completions", json=chat_request(stream=stream))
    assert response.status_code == 200
    assert ("data: [DONE]" in response.text) == stream


def test_other_clients_are_refused(port: int, certificate: tuple[Path, Path]) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"https://{NAME}:{port}/health")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{NAME}:{port}/health")
    old = ssl.create_default_context(cafile=str(certificate[0]))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for ciphers, is_served in (("ECDHE+AESGCM", True), ("ECDHE-ECDSA-AES128-SHA256", False)):
        old.set_ciphers(ciphers)
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            nullcontext() if is_served else pytest.raises(ssl.SSLError),
        ):
            old.wrap_socket(plain, server_hostname=NAME).close()


def test_headers_have_a_deadline(port: int, certificate: tuple[Path, Path]) -> None:
    with connect(port, certificate[0]) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert receive_all(connection).startswith(b"HTTP/1.1 408")


def test_body_in_tiny_chunks_is_read(port: int, certificate: tuple[Path, Path]) -> None:
    with connect(port, certificate[0]) as connection:
        connection.sendall(CHUNKED + split_into_chunks(b"{}".ljust(1900)))
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_unread_response_is_dropped(monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path], loop: str) -> None:
    """The response is larger than what the kernel buffers."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.2)
    lost = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["scheme"] == "https"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(50_000_000)})
        await asyncio.sleep(0)

    class SecureProtocol(TimedH11Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    options = {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1], "loop": loop, "lifespan": "off"}
    with serve_application(app, SecureProtocol, **options) as port, connect(port, certificate[0]) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert lost.wait(5)


def test_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    certificate, key = create_certificate(tmp_path, password="right")
    files = {"ssl_certfile": certificate, "ssl_keyfile": key}
    Settings(**files, ssl_keyfile_password=SecretStr("right"))
    for password in (None, SecretStr("wrong")):
        with pytest.raises(ValidationError, match="ssl_keyfile_password") as refused:
            Settings(**files, ssl_keyfile_password=password)
        assert "wrong" not in str(refused.value)


@pytest.mark.parametrize("name", ["missing", "no certificate", "key of another", "no key"])
def test_unusable_certificate_is_refused_at_start(certificate: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    file, key = certificate
    (tmp_path / "text").write_text("text")
    settings: dict[str, Path | None] = {
        "missing": {"ssl_certfile": tmp_path / "nothing", "ssl_keyfile": key},
        "no certificate": {"ssl_certfile": tmp_path / "text", "ssl_keyfile": key},
        "key of another": {"ssl_certfile": file, "ssl_keyfile": create_certificate(tmp_path)[1]},
        "no key": {"ssl_certfile": file, "ssl_keyfile": None},
    }[name]
    with pytest.raises(ValidationError, match="ssl_certfile: "):
        Settings(**settings)  # type: ignore[arg-type]


def test_key_needs_a_certificate(certificate: tuple[Path, Path]) -> None:
    with pytest.raises(ValidationError, match="ssl_certfile"):
        Settings(ssl_keyfile=certificate[1])


def test_documented_nginx_configuration_speaks_https(certificate: tuple[Path, Path]) -> None:
    nginx = require_program("nginx-light", "nginx")
    (directives,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, file in zip(("fullchain", "privkey"), certificate, strict=True):
        directives = directives.replace(f"/etc/nginx/tls/{name}.pem", str(file))
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with run_nginx(str(nginx), [1], directives, listen="ssl") as url:
        secure = url.replace("http://127.0.0.1", f"https://{NAME}")
        assert httpx.get(f"{secure}/health", verify=context).status_code == 502  # there is no server behind it
