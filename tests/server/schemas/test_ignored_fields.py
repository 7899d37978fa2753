"""Fields without effect are accepted and listed in the receipt, or refused by a strict server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import FakeServer, StartServer, data_url

TEXT = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
IMAGE = {"type": "image_url", "image_url": {"url": data_url(), "detail": "high"}, "uuid": "b"}
CHAT = {
    "messages": [
        {"role": "system", "content": "a", "name": "b"},
        {"role": "user", "content": [TEXT, IMAGE, TEXT], "name": "c"},
    ],
    "metadata": {"a": "b"},
    "prediction": {"type": "content", "content": "a"},
    "prompt_cache_key": "a",
    "prompt_cache_options": {"a": 1},
    "prompt_cache_retention": "24h",
    "safety_identifier": "a",
    "service_tier": "flex",
    "store": True,
    "priority": 3,
    "request_id": "a",
    "length_penalty": 2,
    "spaces_between_special_tokens": False,
    "mm_payload": "none",
    "return_mm_kwargs": False,
    "routed_experts_prompt_start": 4,
    "truncation_side": "left",
    "stream": True,
    "stream_options": {"include_obfuscation": True},
}
CHAT_PATHS = {
    "messages[].name": "messages[0].name",
    "messages[].content[].cache_control": "messages[1].content[0].cache_control",
    "messages[].content[].uuid": "messages[1].content[1].uuid",
    "messages[].content[].image_url.detail": "messages[1].content[1].image_url.detail",
    "stream_options.include_obfuscation": "stream_options.include_obfuscation",
    **{name: name for name in CHAT if name not in ("messages", "stream", "stream_options")},
}
NEUTRAL = {
    "metadata": {},
    "service_tier": "auto",
    "store": False,
    "priority": 0,
    "length_penalty": 1,
    "skip_special_tokens": True,
    "bad_words": [],
    "prompt_cache_key": None,
    "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(), "detail": "auto"}}]}
    ],
}
RESPONSES = {
    "input": "a",
    "store": True,
    "max_tool_calls": 1,
    "session_id": "a",
    "include": ["reasoning.encrypted_content"],
}


async def test_receipt_lists_ignored_fields_once(server: FakeServer) -> None:
    response = await server.chat(**{**CHAT, "stream": False, "stream_options": None})
    assert response.status_code == 200, response.text
    expected = set(CHAT_PATHS) - {"stream_options.include_obfuscation"}
    assert sorted(response.json()["onlyseen"]["ignored"]) == sorted(expected)
    response = await server.chat(**CHAT)
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert sorted(chunks[-1]["onlyseen"]["ignored"]) == sorted(CHAT_PATHS)


@pytest.mark.parametrize("strict", [False, True])
async def test_neutral_values_are_accepted_and_not_listed(start_server: StartServer, strict: bool) -> None:
    response = await (await start_server(strict=strict)).chat(**NEUTRAL)
    assert response.status_code == 200, response.text
    assert "ignored" not in response.json()["onlyseen"]


@pytest.mark.parametrize(
    ("route", "fields", "ignored"),
    [
        ("v1/responses", RESPONSES, ["store", "max_tool_calls", "session_id", "include[reasoning.encrypted_content]"]),
        (
            "v1/responses",
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": data_url(), "detail": "low"}]}
                ]
            },
            ["input[].content[].detail"],
        ),
        ("v1/completions", {"prompt": "a", "metadata": {"a": "b"}, "session_id": "c"}, ["metadata", "session_id"]),
    ],
)
async def test_other_routes_list_ignored_fields(
    start_server: StartServer, route: str, fields: dict[str, Any], ignored: list[str]
) -> None:
    server = await start_server()
    response = await server.http.post(f"/{route}", json={"model": "tiny", **fields})
    assert sorted(response.json()["onlyseen"]["ignored"]) == sorted(ignored)
    strict = await start_server(strict=True)
    response = await strict.http.post(f"/{route}", json={"model": "tiny", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"].partition("[")[0] in {name.partition("[")[0] for name in ignored}


async def test_strict_server_refuses_each_field_at_its_place(start_server: StartServer) -> None:
    server = await start_server(strict=True)
    for name, path in CHAT_PATHS.items():
        fields: dict[str, Any] = {name: CHAT.get(name)}
        if name.startswith("messages"):
            continue
        if name.startswith("stream_options"):
            fields = {"stream": True, "stream_options": CHAT["stream_options"]}
        error = (await server.chat(**fields)).json()["error"]
        assert (error["param"], error["code"]) == (path, "unsupported_parameter")
    error = (await server.chat(messages=CHAT["messages"])).json()["error"]
    assert (error["param"], error["code"]) == ("messages[0].name", "unsupported_parameter")
    assert not server.engine.requests


async def test_tokenize_accepts_ignored_fields_unless_strict(start_server: StartServer) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a", "name": "b"}]}
    assert (await (await start_server()).http.post("/tokenize", json=body)).status_code == 200
    assert (await (await start_server(strict=True)).http.post("/tokenize", json=body)).status_code == 400


@pytest.mark.parametrize(("route", "fields"), [("v1/chat/completions", {"n": 2}), ("v1/completions", {"prompt": "a"})])
async def test_every_chunk_has_the_usage_so_far(server: FakeServer, route: str, fields: dict[str, Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body: dict[str, Any] = {"model": "tiny", "stream": True, "stream_options": options, **fields}
    if route == "v1/chat/completions":
        body["messages"] = [{"role": "user", "content": "a"}]
    response = await server.http.post(f"/{route}", json=body)
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    usages = [chunk["usage"] for chunk in chunks]
    completion = [usage["completion_tokens"] for usage in usages]
    assert all(usage["prompt_tokens"] == 7 for usage in usages)
    assert (completion[0], completion[-1]) == (1, 5 * fields.get("n", 1))
    assert completion == sorted(completion)
