"""/v1/responses with the unmodified client of the openai package."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from decoding.errors import EngineFailed
from tests.server.conftest import FakeServer, StartServer, check_refusal, data_url
from tests.server.fakes import FakeEngine

REQUEST: dict[str, Any] = {"model": "tiny", "input": "Hello."}


def image_input(**fields: Any) -> dict[str, Any]:
    parts = [{"type": "input_image", "image_url": data_url()} | fields, {"type": "input_text", "text": "A cat?"}]
    return {"input": [{"role": "user", "content": parts}]}


async def test_response_document_has_the_fields_of_openai(server: FakeServer) -> None:
    response = await server.openai.responses.create(**REQUEST, instructions="Be brief.", metadata={"a": "b"})
    assert (response.output_text, response.status, response.store) == ("A cat on a mat.", "completed", False)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 5)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert (response.model_extra or {})["onlyseen"]["strategy"] == "plain"
    received = [(message.role, message.text) for message in server.engine.requests[0].prompt.messages]
    assert received == [("system", "Be brief."), ("user", "Hello.")]


async def test_conversation_with_image_continues(server: FakeServer) -> None:
    first = await server.openai.responses.create(
        **REQUEST | image_input(), extra_body={"decoding": {"strategy": "blind"}}
    )
    history = [*image_input()["input"], *(item.model_dump(exclude_unset=True) for item in first.output)]
    second = await server.openai.responses.create(
        model="tiny:blind", input=[*history, {"role": "user", "content": "Sure?"}]
    )
    assert second.status == "completed"
    prompt = server.engine.requests[1].prompt
    assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]
    assert (prompt.messages[1].text, len(prompt.images)) == ("A cat on a mat.", 1)


async def test_answer_cut_by_max_output_tokens_is_incomplete(server: FakeServer) -> None:
    response = await server.openai.responses.create(**REQUEST, max_output_tokens=2)
    assert (response.status, response.output_text) == ("incomplete", "A cat ")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("most", [None, 3])
async def test_stream_has_openais_events(server: FakeServer, most: int | None) -> None:
    stream = await server.openai.responses.create(**REQUEST, stream=True, max_output_tokens=most)
    events = [event async for event in stream]
    ends = "response.completed" if most is None else "response.incomplete"
    words = most or 5
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * words,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        ends,
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert text == last.response.output_text
    assert last.response.onlyseen["steps"] == words
    assert len({event.item_id for event in events if event.type == "response.output_text.delta"}) == 1


async def test_stream_works_with_client_stream_helper(server: FakeServer) -> None:
    async with server.openai.responses.stream(**REQUEST) as stream:
        assert (await stream.get_final_response()).output_text == "A cat on a mat."


async def test_full_and_streamed_responses_have_logprobs(server: FakeServer) -> None:
    fields: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    response = await server.openai.responses.create(**REQUEST, **fields)
    part: Any = response.output[0].content[0]  # type: ignore[union-attr]
    assert [(each.token, len(each.top_logprobs)) for each in part.logprobs][:2] == [("A ", 2), ("cat ", 2)]
    stream = await server.openai.responses.create(**REQUEST | image_input(), stream=True, extra_body={
        "decoding": {"grounding": True}})  # fmt: skip
    deltas: Any = [event async for event in stream if event.type == "response.output_text.delta"]
    assert [delta.logprobs[0].grounding for delta in deltas] == [0.5] * 5


async def test_text_format_reaches_engine_as_grammar(server: FakeServer) -> None:
    class Cats(BaseModel):
        count: int

    server.engine.words = ('{"count": ', "3}")
    response = await server.openai.responses.parse(**REQUEST, text_format=Cats)
    assert response.output_parsed == Cats(count=3)
    grammar = server.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert '"count"' in grammar.text


async def test_failed_stream_ends_with_error_event(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(failure=EngineFailed("Broke."), fails_after=2))
    stream = await server.openai.responses.create(**REQUEST, stream=True)
    *_, last = [event async for event in stream]
    assert last.type == "error"
    assert (last.code, last.message) == ("engine_failed", "Broke.")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", None),
        ({"input": []}, "input", None),
        ({"input": 3}, "input", None),
        ({"input": [{"role": "wizard", "content": "a"}]}, "input[0].role", None),
        ({"input": [{"role": "assistant", "content": "a"}]}, "input", None),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input[0].type",
         "unsupported_parameter"),
        (image_input(image_url="file:///etc/passwd"), "input[0].content[0].image_url", "invalid_image_url"),
        (image_input(image_url=None, file_id="file-1"), "input[0].content[0].image_url", None),
        ({"input": [{"role": "system", **image_input()["input"][0] | {"role": "system"}},
                    {"role": "user", "content": "a"}]}, "input[0].content[0]", None),
        ({"decoding": {"strategy": "blind"}}, "input", None),
        ({"max_output_tokens": 0}, "max_output_tokens", None),
        ({"temperature": 3}, "temperature", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"include": ["wizard"]}, "include[0]", None),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}},
         "text.format.schema", "invalid_schema"),
        ({"model": "tiny:vote", "text": {"format": {"type": "json_object"}}}, "text.format", "unsupported"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"messages": []}, "messages", None),
    ],
)  # fmt: skip
async def test_invalid_field_is_refused(
    server: FakeServer, fields: dict[str, Any], param: str, code: str | None
) -> None:
    response = await server.http.post("/v1/responses", json=REQUEST | fields)
    check_refusal(response, param, code)
    assert not server.engine.requests or param == "text.format"
