"""Log-probabilities of prompts: vLLM's `prompt_logprobs`, and `echo` with `logprobs` on completions."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.errors import BadRequest
from decoding.requests import GenerateRequest
from tests.server.conftest import FakeServer, StartServer, check_refusal
from tests.server.fakes import ALL_CAPABILITIES, FakeEngine

TEXT = "Once upon IMAGE time"
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": TEXT}
ENTRIES = [
    None,
    {"2": (-1.0, 2, "upon "), "100": (-0.5, 1, "top0")},
    None,
    {"4": (-3.0, 4, "time "), "100": (-0.5, 1, "top0")},
]


def read(prompt_logprobs: Any) -> Any:
    """Turn each entry of a response into a tuple."""
    names = ("logprob", "rank", "decoded_token")
    return [
        each and {token: tuple(entry[name] for name in names) for token, entry in each.items()}
        for each in prompt_logprobs
    ]


async def test_chat_has_those_of_its_prompt(server: FakeServer) -> None:
    response = (await server.chat(messages=[{"role": "user", "content": TEXT}], prompt_logprobs=1, n=2)).json()
    assert read(response["prompt_logprobs"]) == ENTRIES
    assert [choice["message"]["content"] for choice in response["choices"]] == ["A cat on a mat."] * 2
    first, *others = server.engine.requests
    assert (first.prompt_logprobs, first.stack, first.branches) == (1, (), {})
    assert [request.prompt_logprobs for request in others] == [None, None]
    assert response["onlyseen"]["forward_passes"] == 1 + 2 * 5
    assert "prompt_logprobs" not in (await server.chat()).json()


async def test_continued_message_belongs_to_the_prompt(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES | {"answer_prefix"}))
    messages = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon IMAGE time"}]
    response = await server.chat(messages=messages, continue_final_message=True, prompt_logprobs=1)
    assert read(response.json()["prompt_logprobs"]) == ENTRIES


async def test_completion_has_those_of_each_prompt(server: FakeServer) -> None:
    fields = COMPLETION | {"prompt": [TEXT, "One two"], "n": 2, "prompt_logprobs": 1}
    choices = (await server.http.post("/v1/completions", json=fields)).json()["choices"]
    short = [None, {"2": (-1.0, 2, "two "), "100": (-0.5, 1, "top0")}]
    assert [read(choice["prompt_logprobs"]) for choice in choices] == [ENTRIES, ENTRIES, short, short]
    assert all(choice["logprobs"] is None for choice in choices)


@pytest.mark.parametrize("most", [2, 0])
async def test_echo_begins_the_lists_with_the_prompt(server: FakeServer, most: int) -> None:
    fields: dict[str, Any] = COMPLETION | {"echo": True, "logprobs": 1, "max_tokens": most}
    (choice,) = (await server.openai.completions.create(**fields)).choices
    logprobs = choice.logprobs
    assert logprobs is not None
    answer = ["A ", "cat "][:most]
    assert logprobs.tokens == ["Once ", "upon ", "IMAGE ", "time ", *answer]
    assert logprobs.token_logprobs == [None, -1.0, None, -3.0, *[-0.25] * most]
    assert logprobs.text_offset == [0, 5, 10, 16, *[20, 22][:most]]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[:4] == [None, {"upon ": -1.0, "top0": -0.5}, None, {"time ": -3.0, "top0": -0.5}]
    assert len(logprobs.top_logprobs) == 4 + most
    stream = await server.openai.completions.create(**fields, stream=True)
    parts = [chunk.choices[0].logprobs async for chunk in stream if chunk.choices and chunk.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [each for part in parts for each in getattr(part, name)] == getattr(logprobs, name)


async def test_other_count_of_prompt_logprobs_beside_echo(server: FakeServer) -> None:
    fields = COMPLETION | {"echo": True, "logprobs": 0, "prompt_logprobs": 1, "max_tokens": 0}
    (choice,) = (await server.http.post("/v1/completions", json=fields)).json()["choices"]
    assert read(choice["prompt_logprobs"]) == ENTRIES
    assert choice["logprobs"]["top_logprobs"][1] == {"upon ": -1.0}
    assert [request.prompt_logprobs for request in server.engine.requests] == [1, None]


async def test_stream_and_engine_without_them_are_refused(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES - {"prompt_logprobs"}))
    check_refusal(await server.chat(prompt_logprobs=1, stream=True), "prompt_logprobs", None)
    check_refusal(await server.chat(prompt_logprobs=1), "prompt_logprobs", "unsupported")
    fields = COMPLETION | {"echo": True, "logprobs": 1}
    check_refusal(await server.http.post("/v1/completions", json=fields), "logprobs", "unsupported")
    assert not server.engine.requests


async def test_refusal_of_the_engine_names_the_field_of_the_client(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: GenerateRequest) -> None:
        if request.prompt_logprobs is not None:
            raise BadRequest("Too many.", param="prompt_logprobs")

    monkeypatch.setattr(server.engine, "check", refuse)
    check_refusal(await server.chat(prompt_logprobs=1), "prompt_logprobs", None)
    fields = COMPLETION | {"echo": True, "logprobs": 1}
    check_refusal(await server.http.post("/v1/completions", json=fields), "logprobs", None)
