"""/tokenize and /version."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from decoding.errors import BadRequest
from decoding.requests import Prompt
from tests.server.conftest import FakeServer, StartServer, image_messages, wait_until
from tests.server.fakes import ALL_CAPABILITIES, FakeEngine


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"prompt": "a bcd ef"}, [1, 3, 2]),
        ({"messages": [{"role": "user", "content": "a bcd"}]}, [1, 3]),
        ({"messages": image_messages(text="one")}, [3]),
        ({"prompt": "a", "model": "tiny:blind"}, [1]),
    ],
)
async def test_tokenize_returns_ids(server: FakeServer, fields: dict[str, Any], tokens: list[int]) -> None:
    response = await server.http.post("/tokenize", json={"model": "tiny"} | fields)
    assert response.json() == {"count": len(tokens), "max_model_len": 4096, "tokens": tokens}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": "a", "add_special_tokens": False}, 400, "add_special_tokens"),
        ({"prompt": "a", "model": "other"}, 404, "model"),
    ],
)
async def test_invalid_field_is_refused(server: FakeServer, fields: dict[str, Any], status: int, param: str) -> None:
    response = await server.http.post("/tokenize", json={"model": "tiny"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


class RefusingEngine(FakeEngine):
    async def tokenize(self, prompt: Prompt) -> list[int]:
        raise BadRequest("No.", param="messages")


@pytest.mark.parametrize("fields", [{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}])
async def test_engine_error_names_the_sent_field(start_server: StartServer, fields: dict[str, Any]) -> None:
    server = await start_server(RefusingEngine())
    response = await server.http.post("/tokenize", json={"model": "tiny"} | fields)
    assert [response.json()["error"]["param"]] == list(fields)


class WaitingEngine(FakeEngine):
    """Tokenizes when `is_free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_free = asyncio.Event()
        self.prompts: list[str] = []

    async def tokenize(self, prompt: Prompt) -> list[int]:
        self.prompts.append(prompt.messages[0].text)
        await self.is_free.wait()
        return await super().tokenize(prompt)


def send_prompt(server: FakeServer, text: str, key: str = "none") -> asyncio.Task[httpx.Response]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    headers = {"authorization": f"Bearer {key}"}
    return asyncio.create_task(server.http.post("/tokenize", json=body, headers=headers))


async def test_requests_are_limited_to_rows_and_queue(start_server: StartServer) -> None:
    engine = WaitingEngine()
    server = await start_server(engine, max_rows=1, max_waiting=1)
    admitted = [send_prompt(server, "a") for _ in range(2)]
    await wait_until(lambda: len(engine.prompts) == 2)
    refused = await asyncio.wait_for(send_prompt(server, "a"), 5)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert refused.headers["retry-after"] == "1"
    assert (await server.chat()).status_code == 429
    engine.is_free.set()
    assert {response.status_code for response in await asyncio.gather(*admitted)} == {200}
    assert (await send_prompt(server, "a")).status_code == 200


async def test_keys_take_turns(start_server: StartServer) -> None:
    engine = WaitingEngine()
    server = await start_server(engine, api_keys="one,other", max_rows=2, max_waiting=8)
    requests = [send_prompt(server, "one", "one") for _ in range(3)]
    await wait_until(lambda: server.app.state.service.active_requests == 3)
    requests.append(send_prompt(server, "other", "other"))
    await wait_until(lambda: "other" in engine.prompts)
    assert engine.prompts == ["one", "other"]
    engine.is_free.set()
    assert {response.status_code for response in await asyncio.gather(*requests)} == {200}


async def test_bodies_of_waiting_requests_stay_in_the_budget(start_server: StartServer) -> None:
    """The data URLs of their images are kept until the answer."""
    engine = WaitingEngine()
    server = await start_server(engine, api_keys="one,other", max_rows=1, max_waiting=8, key_share=1)
    requests = [send_prompt(server, "a" * 1000, "one") for _ in range(3)]
    service = server.app.state.service
    await wait_until(lambda: any(queue for queue in service.fair_queue._waiting.values()))
    assert service.body_budget.used_bytes > 3000
    engine.is_free.set()
    await asyncio.gather(*requests)
    assert service.body_budget.used_bytes == 0


async def test_engine_without_tokenizer_is_unsupported(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES - {"tokenize"}))
    response = await server.http.post("/tokenize", json={"model": "tiny", "prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")


async def test_version_route_returns_a_version(server: FakeServer) -> None:
    assert (await server.http.get("/version")).json()["version"]
