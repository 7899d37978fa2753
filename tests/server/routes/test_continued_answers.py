"""`continue_final_message` and `echo` of chat completions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import FakeServer, StartServer, check_refusal, image_messages
from tests.server.fakes import ALL_CAPABILITIES, FakeEngine

CAPABILITIES = ALL_CAPABILITIES | {"answer_prefix"}
START: dict[str, Any] = {
    "role": "assistant",
    "content": [{"type": "text", "text": "I see"}, {"type": "text", "text": " a"}],
}
CONTINUED = {"messages": [*image_messages(), START], "continue_final_message": True, "add_generation_prompt": False}


@pytest.fixture
async def server(start_server: StartServer) -> FakeServer:
    return await start_server(FakeEngine((" cat", "."), capabilities=CAPABILITIES))


@pytest.mark.parametrize("echo", [False, True])
async def test_last_message_is_continued_and_repeated_on_request(server: FakeServer, echo: bool) -> None:
    expected = "I see a cat." if echo else " cat."
    fields = {**CONTINUED, "echo": echo, "n": 2, "logprobs": True}
    body = (await server.chat(**fields)).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == [expected] * 2
    assert [len(choice["logprobs"]["content"]) for choice in body["choices"]] == [2, 2]
    assert "ignored" not in body["onlyseen"]
    (request, _) = server.engine.requests
    assert request.continued_text == "I see a"
    assert [message.role for message in request.prompt.messages] == ["user"]
    response = await server.chat(**fields, stream=True)
    texts = ["", ""]
    for line in response.text.splitlines():
        for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [expected] * 2


@pytest.mark.parametrize("strategy", ["plain", "blind", "focus"])
async def test_strategies_continue_the_message(server: FakeServer, strategy: str) -> None:
    assert (await server.chat(**CONTINUED, decoding={"strategy": strategy})).status_code == 200
    assert server.engine.requests[-1].continued_text == "I see a"


async def test_echo_without_a_continued_message_is_ignored(server: FakeServer) -> None:
    body = (await server.chat(echo=True)).json()
    assert body["choices"][0]["message"]["content"] == " cat."
    assert body["onlyseen"]["ignored"] == ["echo"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": image_messages()}, "messages"),
        ({"messages": [START]}, "messages"),
        ({"messages": [*image_messages(), START, START]}, "messages"),
        ({"messages": [*image_messages(), {"role": "assistant", "content": ""}]}, "messages"),
        ({"continue_final_message": False}, "messages"),
        ({"continue_final_message": False, "messages": image_messages()}, "add_generation_prompt"),
        ({"continue_final_message": 1}, "continue_final_message"),
        (
            {"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "required"},
            "continue_final_message",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_messages_that_cannot_be_continued_are_refused(
    server: FakeServer, fields: dict[str, Any], param: str
) -> None:
    check_refusal(await server.chat(**{**CONTINUED, **fields}), param, None)
    assert not server.engine.requests


@pytest.mark.parametrize("decoding", [{"strategy": "vote"}, {"check": True}], ids=str)
async def test_strategies_that_cannot_continue_an_answer_refuse(server: FakeServer, decoding: Any) -> None:
    error = (await server.chat(**CONTINUED, decoding=decoding)).json()["error"]
    assert error["param"] == "continue_final_message", error
    assert all(not request.continued_text for request in server.engine.requests)


async def test_engine_without_prefixes_refuses(start_server: StartServer) -> None:
    server = await start_server(FakeEngine())
    error = (await server.chat(**CONTINUED)).json()["error"]
    assert (error["param"], error["type"]) == ("continue_final_message", "invalid_request_error")


async def test_long_message_counts_as_a_part_of_the_prompt(server: FakeServer) -> None:
    card = server.engine.card
    server.engine.card = type(card)("fake", card.max_model_len, True, 1000)
    long = {**START, "content": "a" * 1001}
    response = await server.chat(**{**CONTINUED, "messages": [*image_messages(), long]})
    check_refusal(response, "messages", "context_length_exceeded")
