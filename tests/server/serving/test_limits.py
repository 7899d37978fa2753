"""Limits of a request: its time and its rows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from decoding.errors import BadRequest
from decoding.requests import GenerateRequest, Prompt
from tests.server.conftest import StartServer, data_url, image_messages
from tests.server.fakes import FakeEngine

IMAGE_INPUT = [{"role": "user", "content": [{"type": "input_image", "image_url": data_url()}]}]


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"model": "tiny:vote"}])
async def test_timeout_before_the_first_token_is_a_504(start_server: StartServer, fields: dict[str, object]) -> None:
    server = await start_server(FakeEngine(pause=5), request_timeout=0.05)
    response = await server.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (504, "server_error", "timeout")
    assert server.engine.running == 0


async def test_timeout_during_a_stream_is_its_last_event(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(words=["word "] * 1000, pause=0.01), request_timeout=0.2)
    response = await server.chat(stream=True)
    *_, event, data = response.text.strip().splitlines()
    assert (response.status_code, event) == (200, "event: error")
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "timeout"
    assert server.engine.running == 0
    assert (await server.chat()).status_code == 504


async def test_request_with_more_rows_than_the_engine_is_refused(start_server: StartServer) -> None:
    server = await start_server(max_rows=4)
    assert (await server.chat(model="tiny:blind", messages=image_messages(), n=2)).status_code == 200
    response = await server.chat(model="tiny:blind", messages=image_messages(), n=3)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "too_many_sequences", "n")


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
        ("chat/completions", {"model": "tiny:blind", "messages": image_messages()}, "model"),
        ("chat/completions", {"messages": image_messages(), "decoding": {"strategy": "blind"}}, "decoding.strategy"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("responses", {"model": "tiny:blind", "input": IMAGE_INPUT}, "model"),
    ],
)
async def test_too_many_rows_names_the_parameter(
    start_server: StartServer, url: str, fields: dict[str, Any], param: str
) -> None:
    server = await start_server(max_rows=1)
    response = await server.http.post(f"/v1/{url}", json={"model": "tiny"} | fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "too_many_sequences", param)


async def test_search_for_the_reason_of_a_refusal_times_out(start_server: StartServer) -> None:
    class SlowTokenizer(FakeEngine):
        async def check(self, request: GenerateRequest) -> None:
            raise BadRequest("The prompt is too long.", param="messages", code="context_length_exceeded")

        async def tokenize(self, prompt: Prompt) -> list[int]:
            await asyncio.sleep(60)
            return []

    server = await start_server(SlowTokenizer(), request_timeout=0.2)
    async with asyncio.timeout(30):
        response = await server.chat(model="tiny:blind", messages=image_messages())
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
