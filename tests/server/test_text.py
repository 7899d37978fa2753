"""/v1/completions, as the openai package's client sees it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Served

ASKED: dict[str, Any] = {"model": "tiny", "prompt": "Once upon"}


async def test_a_text_goes_on(served: Served) -> None:
    answer = await served.openai.completions.create(**ASKED)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "A cat on a mat.")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 5)
    assert (answer.model_extra or {})["onlyseen"]["strategy"] == "plain"
    prompt = served.engine.asks[0].prompt
    assert (prompt.bare, prompt.question) == (True, "Once upon")
    assert served.engine.asks[0].sampling.max_tokens == 16


async def test_several_texts_with_several_choices(served: Served) -> None:
    answer = await served.openai.completions.create(**ASKED | {"prompt": ["One", "Two"]}, n=2, seed=5, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    asked = [(ask.prompt.question, ask.sampling.seed) for ask in served.engine.asks]
    assert asked == [("One", 5), ("One", 6), ("Two", 5), ("Two", 6)]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 8)


@pytest.mark.parametrize("usage", [False, True])
async def test_streamed(served: Served, usage: bool) -> None:
    stream = await served.openai.completions.create(**ASKED, stream=True, stream_options={"include_usage": usage})
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "A cat on a mat."
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * 4 + ["stop"]
    assert "onlyseen" in (chunks[-1].model_extra or {})
    assert (chunks[-1].choices == []) == usage
    assert (chunks[-1].usage is not None) == usage


async def test_logprobs_are_parallel_lists(served: Served) -> None:
    whole = (await served.openai.completions.create(**ASKED, logprobs=2)).choices[0].logprobs
    assert whole is not None
    assert whole.tokens == ["A ", "cat ", "on ", "a ", "mat."]
    assert whole.text_offset == [0, 2, 6, 9, 11]
    assert whole.token_logprobs == [-0.25] * 5
    # Two likeliest ones, none of which the fake chooses.
    assert [len(top) for top in whole.top_logprobs or []] == [3] * 5
    assert all(token in top for token, top in zip(whole.tokens, whole.top_logprobs or [], strict=True))
    stream = await served.openai.completions.create(**ASKED, logprobs=0, stream=True)
    offsets = [(chunk.choices[0].logprobs.text_offset or []) async for chunk in stream if chunk.choices[0].logprobs]
    assert [offset for each in offsets for offset in each] == whole.text_offset


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
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"best_of": True}, "best_of", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"decoding": {"grounding": True}}, "decoding.grounding", None),
        ({"decoding": {"strategy": "blind"}}, "prompt", None),
    ],
)
async def test_refusals(served: Served, fields: dict[str, Any], param: str, code: str | None) -> None:
    response = await served.http.post("/v1/completions", json=ASKED | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_harmless_fields_are_taken(served: Served) -> None:
    response = await served.http.post("/v1/completions", json=ASKED | {"echo": False, "best_of": 1, "suffix": None})
    assert response.status_code == 200
