"""/tokenize and /version."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.errors import BadRequest
from decoding.requests import Prompt
from tests.server.conftest import FakeServer, StartServer, image_messages
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


async def test_engine_without_tokenizer_is_unsupported(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES - {"tokens"}))
    response = await server.http.post("/tokenize", json={"model": "tiny", "prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")


async def test_version_route_returns_a_version(server: FakeServer) -> None:
    assert (await server.http.get("/version")).json()["version"]
