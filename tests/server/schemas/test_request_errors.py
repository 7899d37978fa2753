"""Invalid input gets OpenAI's error body with the name of the field, and never reaches the engine."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from server.schemas.base import parse_json
from tests.server.conftest import FakeServer, StartServer, chat_request, check_refusal, image_messages

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "nonsense": {}}]}]},
            "messages[0].content[0].nonsense",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}, "nonsense": "a"}]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}, "x": "a"}]}]},
            "messages[0].content[0].x",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "a", "user": "b"}]}, "messages[0].user"),
        ({"type": "temperature", "temperature": 3}, "temperature"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}, "strict": True}},
            "response_format.json_schema.name",
        ),
        ({"messages": [{"role": "user", "content": "a", "name": 1}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "a", "name": "b" * 513}]}, "messages[0].name"),
        ({"metadata": {str(number): "a" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": ["b"]}}, "metadata.a"),
        ({"prompt_cache_options": {"a": {"b": "c"}}}, "prompt_cache_options.a"),
        ({"store": "yes"}, "store"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"bad_words": ["cat"]}, "bad_words"),
        ({"continue_final_message": True}, "messages"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"cache_salt": "a"}, "cache_salt"),
        ({"messages": [{"role": "system", "content": image_messages()[0]["content"]}]}, "messages[0].content[0].type"),
        ({"messages": [*chat_request()["messages"], {"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages"),
        ({"messages": chat_request()["messages"] * 2000}, "messages"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"presence_penalty": 99}, "presence_penalty"),
        ({"frequency_penalty": -99}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 1_000_000}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1e9}, "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"seed": 10**400}, "seed"),
        ({"max_completion_tokens": 1 << 31}, "max_completion_tokens"),
        ({"temperature": -(1 << 63) - 1}, "temperature"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "decoding": {"grounding": True}}, "logprobs"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7"),
        ({"logit_bias": {"7": "a"}}, "logit_bias.7"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"07": 1}}, "logit_bias.07"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1.0]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"stop_token_ids": [1], "response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": [1, 2]}, "stop[0]"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 1}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"chunks": 1}}, "stream_options.chunks"),
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"tokenize": False}, "tokenize"),
        ({"mm_processor_kwargs": {}}, "mm_processor_kwargs"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
        ({"x" * 1000: 1}, "x" * 64),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_invalid_field_is_named(server: FakeServer, fields: dict[str, Any], param: str) -> None:
    body = json.dumps(chat_request(**fields))
    response = await server.http.post("/v1/chat/completions", content=body, headers=JSON)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"]
    assert len(response.content) < 1000
    assert not server.engine.requests


SCHEMA = {"type": "json_schema", "name": "a", "schema": {"properties": {"b": {"enum": [0, 10**24]}}}}


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("v1/responses", {"input": "a", "max_output_tokens": 10**24}, "max_output_tokens"),
        ("v1/responses", {"input": "a", "max_output_tokens": 1 << 31}, "max_output_tokens"),
        ("v1/responses", {"input": "a", "text": {"format": SCHEMA}}, "text.format.schema.properties.b.enum[1]"),
        ("v1/responses", {"input": "a", "metadata": {"a": 10**24}}, "metadata.a"),
        ("v1/completions", {"prompt": "a", "max_tokens": 1 << 31}, "max_tokens"),
        ("v1/completions", {"prompt": "a", "user": 10**24}, "user"),
        ("v1/completions", {"prompt": "a", "decoding": {"plain": {"a": 1 << 64}}}, "decoding.plain.a"),
        ("tokenize", {"prompt": 10**24}, "prompt"),
        ("v1/batches", {"metadata": {"a": -(10**24)}}, "metadata.a"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_large_integer_is_refused_before_the_generation(
    server: FakeServer, route: str, fields: dict[str, Any], param: str
) -> None:
    """No response could repeat it."""
    body = fields if route == "v1/batches" else {"model": "tiny", **fields}
    response = await server.http.post(f"/{route}", content=json.dumps(body), headers=JSON)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not server.engine.requests


def test_accepted_integers_can_be_repeated() -> None:
    document = {"a": [(1 << 64) - 1, -(1 << 63)]}
    assert orjson.loads(orjson.dumps(parse_json(json.dumps(document).encode()))) == document


async def test_unsupported_field_is_named(server: FakeServer) -> None:
    response = await server.chat(functions=[{"name": "a"}])
    check_refusal(response, "functions", "unsupported_parameter")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"model": "\xff"}',
        b"]" * 100_000,
        b'"' * 100_000,
        b"1, 2",
        json.dumps(chat_request()).replace("Hello.", "\\ud800").encode(),
    ],
    ids=lambda body: repr(body[:12]),
)
async def test_invalid_json_is_refused(server: FakeServer, body: bytes) -> None:
    response = await server.http.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["code"] is None


async def test_body_over_limit_is_refused(start_server: StartServer) -> None:
    server = await start_server(max_body_mb=1)

    async def pieces(count: int) -> Any:
        for _ in range(count):
            yield b"x" * 100_000

    for content in (b"x" * 1_000_001, pieces(11)):
        response = await server.http.post("/v1/chat/completions", content=content, headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert (await server.http.post("/v1/chat/completions", content=pieces(10), headers=JSON)).status_code == 400


@pytest.mark.parametrize("route", ["v1/chat/completions", "v1/completions", "v1/responses", "tokenize", "v1/batches"])
@pytest.mark.parametrize("headers", [{}, {"content-type": ""}, {"content-type": "text/plain"}])
async def test_body_without_json_content_type_is_refused(
    server: FakeServer, route: str, headers: dict[str, str]
) -> None:
    response = await server.http.post(f"/{route}", content=json.dumps(chat_request()), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_form_is_refused(server: FakeServer) -> None:
    """A browser sends a form to another origin without a preflight request."""
    response = await server.http.post("/v1/chat/completions", data={"model": "tiny"})
    assert (response.status_code, response.json()["error"]["type"]) == (415, "invalid_request_error")


async def test_charset_in_content_type_is_accepted(server: FakeServer) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    content = json.dumps(chat_request())
    response = await server.http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 200
