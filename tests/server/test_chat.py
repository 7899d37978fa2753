"""The openai package's client, unmodified, gets answers, streamed and not."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from tests.server.conftest import Serve, Served, asked, data_url, seeing
from tests.server.fakes import FakeEngine

TEXT = "A cat on a mat."


async def chunks(served: Served, **fields: Any) -> list[ChatCompletionChunk]:
    stream = await served.openai.chat.completions.create(**asked(stream=True, **fields))
    return [chunk async for chunk in stream]


def joined(said: list[ChatCompletionChunk], choice: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in said for c in chunk.choices if c.index == choice)


async def test_streamed_equals_whole(served: Served) -> None:
    whole = await served.openai.chat.completions.create(**asked())
    said = await chunks(served)
    assert whole.choices[0].message.content == TEXT == joined(said)
    assert [c.finish_reason for chunk in said for c in chunk.choices if c.finish_reason] == ["stop"]
    assert said[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in said}) == 1


async def test_stream_ends_with_done(served: Served) -> None:
    response = await served.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.rstrip().splitlines()[-1] == "data: [DONE]"


async def test_usage_counts_the_prompt_once_and_adds_the_choices(served: Served) -> None:
    whole = await served.openai.chat.completions.create(**asked(n=2))
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (7, 10, 17)


async def test_usage_is_streamed_when_asked_for(served: Served) -> None:
    said = await chunks(served, stream_options={"include_usage": True})
    *before, last = said
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in before)
    assert last.model_extra is not None
    assert last.model_extra["onlyseen"]["steps"] == 5
    assert all(chunk.usage is None for chunk in await chunks(served))


async def test_receipt_is_on_the_last_chunk_only(served: Served) -> None:
    said = await chunks(served, n=3)
    *before, last = [(chunk.model_extra or {}).get("onlyseen") for chunk in said]
    assert set(before) == {None}
    assert last is not None
    assert last["steps"] == 15


async def test_choices_have_seeds_of_their_own(served: Served) -> None:
    whole = await served.openai.chat.completions.create(**asked(n=3, seed=41))
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [ask.sampling.seed for ask in served.engine.asks] == [41, 42, 43]
    said = await chunks(served, n=2)
    assert joined(said, 0) == joined(said, 1) == TEXT
    assert [ask.sampling.seed for ask in served.engine.asks[3:]] == [None, None]


async def test_length_is_a_reason_to_finish(served: Served) -> None:
    whole = await served.openai.chat.completions.create(**asked(max_completion_tokens=2))
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.content == "A cat "


async def test_sampling_reaches_the_engine(served: Served) -> None:
    fields = {"temperature": 0, "top_p": 0.9, "min_p": 0.1, "top_k": 5, "repetition_penalty": 1.1, "stop": ["x", "y"]}
    others = {"presence_penalty": 0.2, "frequency_penalty": 0.3, "min_tokens": 1, "ignore_eos": True}
    assert (await served.chat(**fields, **others, max_tokens=10**9)).status_code == 200
    sampling = served.engine.asks[0].sampling
    assert {name: getattr(sampling, name) for name in others} == others
    assert {name: getattr(sampling, name) for name in fields} == fields | {"stop": ("x", "y")}
    assert sampling.max_tokens == 4096


async def test_a_temperature_that_no_score_can_be_divided_by_is_none(served: Served) -> None:
    assert (await served.chat(temperature=1e-300)).status_code == 200
    assert served.engine.asks[0].sampling.temperature == 0


async def test_a_top_p_of_nothing_leaves_one_token(served: Served) -> None:
    assert (await served.chat(top_p=0)).status_code == 200
    assert 0 < served.engine.asks[0].sampling.top_p < 1e-6


async def test_temperature_is_1_unless_given(served: Served) -> None:
    await served.chat(temperature=None)
    assert served.engine.asks[0].sampling.temperature == 1


async def test_logprobs(served: Served) -> None:
    whole = await served.openai.chat.completions.create(**asked(logprobs=True, top_logprobs=2))
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.bytes, first.logprob, len(first.top_logprobs)) == ("A ", [65, 32], -0.25, 2)
    assert not first.model_extra
    said = await chunks(served, logprobs=True, top_logprobs=2)
    streamed = [c.logprobs.content for chunk in said for c in chunk.choices if c.logprobs]
    assert [entry for entries in streamed for entry in entries or ()] == logprobs.content


async def test_no_logprobs_unless_asked_for(served: Served) -> None:
    whole = await served.openai.chat.completions.create(**asked())
    assert whole.choices[0].logprobs is None
    assert served.engine.asks[0].sampling.top_logprobs is None


async def test_grounding_switches_logprobs_on(served: Served) -> None:
    body = {"decoding": {"grounding": True}}
    whole = await served.openai.chat.completions.create(**asked(messages=seeing()), extra_body=body)
    assert whole.choices[0].logprobs is not None
    entries = whole.choices[0].logprobs.content or []
    assert [(entry.model_extra or {})["grounding"] for entry in entries] == [0.5] * 5
    assert whole.model_extra is not None
    assert whole.model_extra["onlyseen"]["branches"] == ["grounding/blind"]


async def test_conversation_reaches_the_engine_as_it_is(served: Served) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, *seeing()[0]["content"]]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure? <image> <|image_pad|> \0"},
    ]
    assert (await served.chat(messages=messages)).status_code == 200
    said = served.engine.asks[0].prompt.messages
    assert [message.role for message in said] == ["system", "user", "assistant", "user"]
    assert said[1].text == "aIs there a cat?"
    assert said[1].parts[1].image.size == (8, 6)  # type: ignore[union-attr]
    assert said[3].text == "Sure? <image> <|image_pad|> \0"


async def test_a_response_message_can_be_sent_back(served: Served) -> None:
    whole = await served.openai.chat.completions.create(**asked())
    messages = [*asked()["messages"], whole.choices[0].message, {"role": "user", "content": "More?"}]
    again = await served.openai.chat.completions.create(**asked(messages=messages))
    assert again.choices[0].message.content == TEXT
    messages[1] = whole.choices[0].message.model_dump()
    assert (await served.chat(messages=messages)).status_code == 200


async def test_several_pictures_keep_their_order(served: Served) -> None:
    from PIL import Image

    urls = [data_url(Image.new("RGB", (size, 4))) for size in (5, 9, 7)]
    assert (await served.chat(messages=seeing(*urls))).status_code == 200
    assert [picture.image.width for picture in served.engine.asks[0].prompt.pictures] == [5, 9, 7]


@pytest.mark.parametrize("field", ["tools", "store", "response_format", "tool_choice"])
async def test_fields_that_ask_for_nothing_are_taken(served: Served, field: str) -> None:
    value: Any = {"tools": [], "store": False, "response_format": {"type": "text"}, "tool_choice": "none"}[field]
    assert (await served.chat(**{field: value})).status_code == 200


async def test_words_with_no_text_are_not_streamed(serve: Serve) -> None:
    served = await serve(FakeEngine(words=["A", "", "B", ""]))
    said = await chunks(served)
    assert [c.delta.content for chunk in said for c in chunk.choices] == ["", "A", "B", None]
    assert len([c for chunk in await chunks(served, logprobs=True) for c in chunk.choices if c.logprobs]) == 4
