"""/v1/completions with the unmodified client of the openai package."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import FakeServer, check_refusal

REQUEST: dict[str, Any] = {"model": "tiny", "prompt": "Once upon"}


async def test_completion_continues_the_text(server: FakeServer) -> None:
    answer = await server.openai.completions.create(**REQUEST)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "A cat on a mat.")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 5)
    assert (answer.model_extra or {})["onlyseen"]["strategy"] == "plain"
    prompt = server.engine.requests[0].prompt
    assert (prompt.raw_text, prompt.question) == (True, "Once upon")
    assert server.engine.requests[0].sampling.max_tokens == 16


async def test_choices_of_several_prompts_are_numbered_in_order(server: FakeServer) -> None:
    answer = await server.openai.completions.create(**REQUEST | {"prompt": ["One", "Two"]}, n=2, seed=5, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    received = [(request.prompt.question, request.sampling.seed) for request in server.engine.requests]
    assert received == [("One", 5), ("One", 6), ("Two", 5), ("Two", 6)]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 8)


@pytest.mark.parametrize("usage", [False, True])
async def test_streamed_completion_ends_with_the_receipt(server: FakeServer, usage: bool) -> None:
    stream = await server.openai.completions.create(**REQUEST, stream=True, stream_options={"include_usage": usage})
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "A cat on a mat."
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * 4 + ["stop"]
    assert "onlyseen" in (chunks[-1].model_extra or {})
    assert (chunks[-1].choices == []) == usage
    assert (chunks[-1].usage is not None) == usage


async def test_logprobs_are_parallel_lists(server: FakeServer) -> None:
    logprobs = (await server.openai.completions.create(**REQUEST, logprobs=2)).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["A ", "cat ", "on ", "a ", "mat."]
    assert logprobs.text_offset == [0, 2, 6, 9, 11]
    assert logprobs.token_logprobs == [-0.25] * 5
    # The two likeliest tokens and the chosen one, which the fake engine does not list among them.
    assert [len(top) for top in logprobs.top_logprobs or []] == [3] * 5
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs or [], strict=True))
    stream = await server.openai.completions.create(**REQUEST, logprobs=0, stream=True)
    offsets = [(chunk.choices[0].logprobs.text_offset or []) async for chunk in stream if chunk.choices[0].logprobs]
    assert [offset for each in offsets for offset in each] == logprobs.text_offset


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", None),
        ({"prompt": ""}, "prompt", None),
        ({"prompt": []}, "prompt", None),
        ({"prompt": [1, 2]}, "prompt[0]", None),
        ({"prompt": ["a"] * 9}, "prompt", None),
        ({"logprobs": 6}, "logprobs", None),
        ({"logprobs": True}, "logprobs", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"min_tokens": 17}, "min_tokens", None),
        ({"messages": []}, "messages", None),
        ({"max_tokens": 0, "echo": False}, "max_tokens", None),
        ({"prompt_logprobs": 21}, "prompt_logprobs", None),
        ({"prompt_logprobs": -1}, "prompt_logprobs", None),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", None),
        ({"echo": 1}, "echo", None),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"best_of": True}, "best_of", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"decoding": {"grounding": True}}, "decoding.grounding", None),
        ({"decoding": {"strategy": "blind"}}, "prompt", None),
    ],
)
async def test_invalid_field_is_refused(
    server: FakeServer, fields: dict[str, Any], param: str, code: str | None
) -> None:
    response = await server.http.post("/v1/completions", json=REQUEST | fields)
    check_refusal(response, param, code)


@pytest.mark.parametrize(("most", "answer"), [(2, "A cat "), (0, "")])
async def test_echo_puts_the_prompt_of_each_choice_in_front(server: FakeServer, most: int, answer: str) -> None:
    fields: dict[str, Any] = {"prompt": ["One ", "Two "], "n": 2, "echo": True, "max_tokens": most}
    full = await server.openai.completions.create(**REQUEST | fields)
    expected = [prompt + answer for prompt in ("One ", "One ", "Two ", "Two ")]
    assert [choice.text for choice in full.choices] == expected
    assert {choice.finish_reason for choice in full.choices} == {"length"}
    assert full.usage is not None
    assert (full.usage.prompt_tokens, full.usage.completion_tokens) == (14, 4 * most)
    options = {"include_usage": True}
    stream = await server.openai.completions.create(**REQUEST | fields, stream=True, stream_options=options)  # type: ignore[call-overload]
    chunks = [chunk async for chunk in stream]
    parts = [choice for chunk in chunks for choice in chunk.choices]
    texts = ["".join(choice.text for choice in parts if choice.index == index) for index in range(4)]
    assert texts == expected
    assert [choice.finish_reason for choice in parts if choice.finish_reason] == ["length"] * 4
    assert chunks[-1].usage == full.usage


async def test_neutral_fields_are_accepted(server: FakeServer) -> None:
    response = await server.http.post("/v1/completions", json=REQUEST | {"echo": False, "best_of": 1, "suffix": None})
    assert response.status_code == 200
