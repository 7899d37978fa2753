"""A server over a fake engine, without a socket: httpx and the openai package's client call the application."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import httpx2
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from PIL import Image
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from structlog.typing import EventDict

from decoding import registry
from server.app import create_app, lifespan
from server.settings import Settings
from tests.server.fakes import FAKE_STRATEGIES, FakeEngine

StartServer = Callable[..., Awaitable["FakeServer"]]


class FakeServer:
    """A running application over a fake engine, and its clients."""

    def __init__(self, app: FastAPI, engine: FakeEngine) -> None:
        self.app = app
        self.engine = engine
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", headers={"x-request-id": "test"}
        )
        self.openai = AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app)),
        )

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=chat_request(**fields))

    async def wait_until_started(self) -> None:
        async with asyncio.timeout(5):
            while not self.app.state.service.is_startup_finished:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _use_fake_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "list_strategies", lambda: FAKE_STRATEGIES)


@pytest.fixture(autouse=True)
def log_entries() -> Iterator[list[EventDict]]:
    with capture_logs(processors=[merge_contextvars]) as logs:
        yield logs


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    async with AsyncExitStack() as running:

        async def start(
            engine: FakeEngine | None = None, *, wait_until_started: bool = True, **settings: Any
        ) -> FakeServer:
            engine = engine or FakeEngine()
            app = create_app(Settings(**{"served_name": "tiny", **settings}), lambda _: engine)
            await running.enter_async_context(lifespan(app))
            server = FakeServer(app, engine)
            running.push_async_callback(server.http.aclose)
            running.push_async_callback(server.openai.close)
            if wait_until_started:
                await server.wait_until_started()
            return server

        yield start


@pytest.fixture
async def server(start_server: StartServer) -> FakeServer:
    return await start_server()


def chat_request(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}]} | fields


def check_refusal(response: httpx.Response, param: str, code: str | None) -> None:
    """Check that a response is a 400 for a field."""
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error


def data_url(image: Image.Image | None = None, format: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 6), "red")).save(buffer, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_messages(*urls: str, text: str = "Is there a cat?") -> list[dict[str, Any]]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls or (data_url(),)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


class AsgiClient:
    """Sends one chat request to the application over ASGI, and disconnects when `disconnect` is set."""

    def __init__(self, app: FastAPI, key: str = "", **fields: Any) -> None:
        self.app = app
        self.key = key
        self.body = json.dumps(chat_request(**fields)).encode()
        self.messages: list[Any] = []  # sent by the application
        self.disconnect = asyncio.Event()

    async def receive(self) -> Any:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    async def call(self) -> None:
        path = "/v1/chat/completions"
        scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
        scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http"}
        authorization = f"Bearer {self.key}".encode()
        scope["headers"] = [(b"content-type", b"application/json"), (b"authorization", authorization)]
        await self.app(scope, self.receive, self.send)


async def wait_until(is_reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_reached():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
