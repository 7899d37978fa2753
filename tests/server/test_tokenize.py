"""/tokenize and /version."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.ask import Prompt
from decoding.errors import BadRequest
from tests.server.conftest import Serve, Served, seeing
from tests.server.fakes import ALL, FakeEngine


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"prompt": "a bcd ef"}, [1, 3, 2]),
        ({"messages": [{"role": "user", "content": "a bcd"}]}, [1, 3]),
        ({"messages": seeing(text="one")}, [3]),
        ({"prompt": "a", "model": "tiny:blind"}, [1]),
    ],
)
async def test_tokens(served: Served, fields: dict[str, Any], tokens: list[int]) -> None:
    response = await served.http.post("/tokenize", json={"model": "tiny"} | fields)
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
async def test_refusals(served: Served, fields: dict[str, Any], status: int, param: str) -> None:
    response = await served.http.post("/tokenize", json={"model": "tiny"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


class Refusing(FakeEngine):
    async def tokens(self, prompt: Prompt) -> list[int]:
        raise BadRequest("No.", param="messages")


@pytest.mark.parametrize("fields", [{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}])
async def test_what_the_engine_refuses_is_named_as_it_was_sent(serve: Serve, fields: dict[str, Any]) -> None:
    served = await serve(Refusing())
    response = await served.http.post("/tokenize", json={"model": "tiny"} | fields)
    assert [response.json()["error"]["param"]] == list(fields)


async def test_an_engine_that_does_not_tell(serve: Serve) -> None:
    served = await serve(FakeEngine(capabilities=ALL - {"tokens"}))
    response = await served.http.post("/tokenize", json={"model": "tiny", "prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")


async def test_version(served: Served) -> None:
    assert (await served.http.get("/version")).json()["version"]
