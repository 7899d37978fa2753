"""A real server on a port with the embedded model, and requests about its scenes."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.settings import EMBEDDED_DIR, Settings

NAME = "onlyseen-tiny"
SCENES = sorted((EMBEDDED_DIR / "scenes" / "images").glob("*.png"))[:8]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(create_app(Settings(device="cpu"))) as base:
        yield base


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port, in a thread."""
    config = uvicorn.Config(app, port=0, http="h11", log_level="warning", access_log=False)
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    base = f"http://127.0.0.1:{socket.getsockname()[1]}"
    try:
        wait_until_ready(base)
        yield base
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


def wait_until_ready(base: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"{base}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{base} is not ready")


def build_messages(scene: Path, text: str = "Please describe this image in detail.") -> list[Any]:
    image_url = "data:image/png;base64," + base64.b64encode(scene.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def greedy_request(strategy: str, scene: Path = SCENES[0] if SCENES else Path(), **fields: Any) -> dict[str, Any]:
    fields = {"model": f"{NAME}:{strategy}", "temperature": 0, "max_tokens": 16, **fields}
    return {"messages": build_messages(scene)} | fields
