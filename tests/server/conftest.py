"""A server over a fake engine, without a socket: httpx and the openai package's own client talk to the application."""

from __future__ import annotations

import asyncio
import base64
import io
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
from tests.server.fakes import FAKES, FakeEngine

Serve = Callable[..., Awaitable["Served"]]


class Served:
    """An application that runs, and its clients."""

    def __init__(self, app: FastAPI, engine: FakeEngine) -> None:
        self.app = app
        self.engine = engine
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server", headers={"x-request-id": "test"}
        )
        self.openai = AsyncOpenAI(
            base_url="http://server/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app)),
        )

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=asked(**fields))

    async def settle(self) -> None:
        async with asyncio.timeout(5):
            while not self.app.state.service.is_settled:  # noqa: ASYNC110 - the service has no event to wait for
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _only_fake_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "strategies", lambda: FAKES)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[EventDict]]:
    with capture_logs(processors=[merge_contextvars]) as logs:
        yield logs


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as running:

        async def start(engine: FakeEngine | None = None, *, settle: bool = True, **settings: Any) -> Served:
            engine = engine or FakeEngine()
            app = create_app(Settings(**{"served_name": "tiny", **settings}), lambda _: engine)
            await running.enter_async_context(lifespan(app))
            served = Served(app, engine)
            running.push_async_callback(served.http.aclose)
            running.push_async_callback(served.openai.close)
            if settle:
                await served.settle()
            return served

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    return await serve()


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}]} | fields


def data_url(image: Image.Image | None = None, format: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 6), "red")).save(buffer, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def seeing(*urls: str, text: str = "Is there a cat?") -> list[dict[str, Any]]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls or (data_url(),)]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]
