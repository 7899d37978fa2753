"""/v1/chat/completions with the unmodified client of the openai package, streamed and not."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from tests.server.conftest import FakeServer, StartServer, chat_request, data_url, image_messages
from tests.server.fakes import FakeEngine

TEXT = "A cat on a mat."


async def chunks(server: FakeServer, **fields: Any) -> list[ChatCompletionChunk]:
    stream = await server.openai.chat.completions.create(**chat_request(stream=True, **fields))
    return [chunk async for chunk in stream]


def join_text(streamed: list[ChatCompletionChunk], choice: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in streamed for c in chunk.choices if c.index == choice)


async def test_streamed_text_equals_full_text(server: FakeServer) -> None:
    full = await server.openai.chat.completions.create(**chat_request())
    streamed = await chunks(server)
    assert full.choices[0].message.content == TEXT == join_text(streamed)
    assert [c.finish_reason for chunk in streamed for c in chunk.choices if c.finish_reason] == ["stop"]
    assert streamed[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in streamed}) == 1


async def test_stream_ends_with_done(server: FakeServer) -> None:
    response = await server.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.rstrip().splitlines()[-1] == "data: [DONE]"


async def test_usage_counts_prompt_once_and_adds_choices(server: FakeServer) -> None:
    full = await server.openai.chat.completions.create(**chat_request(n=2))
    assert full.usage is not None
    assert (full.usage.prompt_tokens, full.usage.completion_tokens, full.usage.total_tokens) == (7, 10, 17)


async def test_stream_has_usage_with_include_usage(server: FakeServer) -> None:
    streamed = await chunks(server, stream_options={"include_usage": True})
    *before, last = streamed
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in before)
    assert last.model_extra is not None
    assert last.model_extra["onlyseen"]["steps"] == 5
    assert all(chunk.usage is None for chunk in await chunks(server))


async def test_only_last_chunk_has_receipt(server: FakeServer) -> None:
    streamed = await chunks(server, n=3)
    *before, last = [(chunk.model_extra or {}).get("onlyseen") for chunk in streamed]
    assert set(before) == {None}
    assert last is not None
    assert last["steps"] == 15


async def test_each_choice_has_its_own_seed(server: FakeServer) -> None:
    full = await server.openai.chat.completions.create(**chat_request(n=3, seed=41))
    assert [choice.index for choice in full.choices] == [0, 1, 2]
    assert [request.sampling.seed for request in server.engine.requests] == [41, 42, 43]
    streamed = await chunks(server, n=2)
    assert join_text(streamed, 0) == join_text(streamed, 1) == TEXT
    assert [request.sampling.seed for request in server.engine.requests[3:]] == [None, None]


async def test_finish_reason_is_length_at_max_tokens(server: FakeServer) -> None:
    full = await server.openai.chat.completions.create(**chat_request(max_completion_tokens=2))
    assert full.choices[0].finish_reason == "length"
    assert full.choices[0].message.content == "A cat "


async def test_sampling_fields_reach_engine(server: FakeServer) -> None:
    fields = {"temperature": 0, "top_p": 0.9, "min_p": 0.1, "top_k": 5, "repetition_penalty": 1.1, "stop": ["x", "y"]}
    others = {"presence_penalty": 0.2, "frequency_penalty": 0.3, "min_tokens": 1, "ignore_eos": True}
    assert (await server.chat(**fields, **others, max_tokens=10**9)).status_code == 200
    sampling = server.engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in others} == others
    assert {name: getattr(sampling, name) for name in fields} == fields | {"stop": ("x", "y")}
    assert sampling.max_tokens == 4096


async def test_tiny_temperature_becomes_zero(server: FakeServer) -> None:
    assert (await server.chat(temperature=1e-300)).status_code == 200
    assert server.engine.requests[0].sampling.temperature == 0


async def test_top_p_of_zero_becomes_positive(server: FakeServer) -> None:
    assert (await server.chat(top_p=0)).status_code == 200
    assert 0 < server.engine.requests[0].sampling.top_p < 1e-6


async def test_temperature_defaults_to_one(server: FakeServer) -> None:
    await server.chat(temperature=None)
    assert server.engine.requests[0].sampling.temperature == 1


async def test_full_and_streamed_responses_have_logprobs(server: FakeServer) -> None:
    full = await server.openai.chat.completions.create(**chat_request(logprobs=True, top_logprobs=2))
    logprobs = full.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.bytes, first.logprob, len(first.top_logprobs)) == ("A ", [65, 32], -0.25, 2)
    assert not first.model_extra
    streamed = await chunks(server, logprobs=True, top_logprobs=2)
    entries = [c.logprobs.content for chunk in streamed for c in chunk.choices if c.logprobs]
    assert [entry for each in entries for entry in each or ()] == logprobs.content


async def test_logprobs_are_off_by_default(server: FakeServer) -> None:
    full = await server.openai.chat.completions.create(**chat_request())
    assert full.choices[0].logprobs is None
    assert server.engine.requests[0].sampling.top_logprobs is None


async def test_grounding_switches_logprobs_on(server: FakeServer) -> None:
    body = {"decoding": {"grounding": True}}
    full = await server.openai.chat.completions.create(**chat_request(messages=image_messages()), extra_body=body)
    assert full.choices[0].logprobs is not None
    entries = full.choices[0].logprobs.content or []
    assert [(entry.model_extra or {})["grounding"] for entry in entries] == [0.5] * 5
    assert full.model_extra is not None
    assert full.model_extra["onlyseen"]["branches"] == ["grounding/blind"]


async def test_conversation_reaches_engine_unchanged(server: FakeServer) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, *image_messages()[0]["content"]]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure? <image> <|image_pad|> \0"},
    ]
    assert (await server.chat(messages=messages)).status_code == 200
    received = server.engine.requests[0].prompt.messages
    assert [message.role for message in received] == ["system", "user", "assistant", "user"]
    assert received[1].text == "aIs there a cat?"
    assert received[1].parts[1].visible.size == (8, 6)  # type: ignore[union-attr]
    assert received[3].text == "Sure? <image> <|image_pad|> \0"


async def test_response_message_is_valid_input(server: FakeServer) -> None:
    full = await server.openai.chat.completions.create(**chat_request())
    messages = [*chat_request()["messages"], full.choices[0].message, {"role": "user", "content": "More?"}]
    second = await server.openai.chat.completions.create(**chat_request(messages=messages))
    assert second.choices[0].message.content == TEXT
    messages[1] = full.choices[0].message.model_dump()
    assert (await server.chat(messages=messages)).status_code == 200


async def test_images_keep_their_order(server: FakeServer) -> None:
    from PIL import Image

    urls = [data_url(Image.new("RGB", (size, 4))) for size in (5, 9, 7)]
    assert (await server.chat(messages=image_messages(*urls))).status_code == 200
    assert [image.visible.width for image in server.engine.requests[0].prompt.images] == [5, 9, 7]


@pytest.mark.parametrize("field", ["tools", "store", "response_format", "tool_choice"])
async def test_neutral_fields_are_accepted(server: FakeServer, field: str) -> None:
    value: Any = {"tools": [], "store": False, "response_format": {"type": "text"}, "tool_choice": "none"}[field]
    assert (await server.chat(**{field: value})).status_code == 200


async def test_tokens_without_text_are_not_streamed(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(words=["A", "", "B", ""]))
    streamed = await chunks(server)
    assert [c.delta.content for chunk in streamed for c in chunk.choices] == ["", "A", "B", None]
    assert len([c for chunk in await chunks(server, logprobs=True) for c in chunk.choices if c.logprobs]) == 4
