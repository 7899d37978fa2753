"""Forced tool calls of /v1/responses with the unmodified client of the openai package."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import FakeServer, StartServer, check_refusal
from tests.server.fakes import FakeEngine
from tests.server.routes.test_tool_calls import ARGUMENTS, COUNT, WRAPPED, split

REQUEST: dict[str, Any] = {"model": "tiny", "input": "Count."}


def tool(name: str, parameters: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": parameters, "strict": True, **fields}


TOOLS = [tool("count", COUNT, description="Count things."), tool("stop")]
NAMED = {"type": "function", "name": "count"}
CASES = pytest.mark.parametrize(
    ("tools", "choice", "text"),
    [(TOOLS, NAMED, ARGUMENTS), (TOOLS, "required", WRAPPED), (TOOLS[:1], "required", ARGUMENTS)],
    ids=["named", "required", "required of one"],
)


@CASES
@pytest.mark.parametrize("size", [1, 100])
async def test_answer_is_one_call(start_server: StartServer, tools: Any, choice: Any, text: str, size: int) -> None:
    server = await start_server(FakeEngine(words=split(text, size)))
    response = await server.openai.responses.create(**REQUEST, tools=tools, tool_choice=choice)
    (call,) = response.output
    assert (call.type, response.status, response.output_text) == ("function_call", "completed", "")
    assert (call.name, call.arguments, call.status) == ("count", ARGUMENTS, "completed")
    assert call.call_id.startswith("call_")
    assert response.model_dump()["tool_choice"] == choice
    assert [each.name for each in response.tools] == [each["name"] for each in tools]  # type: ignore[union-attr]
    grammar = server.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert "thing" in grammar.text
    assert (response.model_extra or {})["onlyseen"]["ignored"] == ["tools[].description"]


@CASES
async def test_streamed_call_has_openais_events(server: FakeServer, tools: Any, choice: Any, text: str) -> None:
    server.engine.words = split(text, 4)
    async with server.openai.responses.stream(**REQUEST, tools=tools, tool_choice=choice) as stream:
        events: list[Any] = [event async for event in stream]
        (call,) = (await stream.get_final_response()).output
    types = [event.type for event in events]
    deltas = types.count("response.function_call_arguments.delta")
    assert types == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *["response.function_call_arguments.delta"] * deltas,
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert deltas > 2
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type.endswith("arguments.delta")) == ARGUMENTS
    assert (events[2].item.name, events[2].item.arguments) == ("count", "")
    assert (events[-3].arguments, call.arguments) == (ARGUMENTS, ARGUMENTS)
    assert len({event.item_id for event in events if "arguments" in event.type} | {call.id}) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("words", "expected"), [(2, None), (35, '{"th'), (len(WRAPPED), ARGUMENTS)])
async def test_answer_that_is_cut_off(server: FakeServer, words: int, expected: str | None, stream: bool) -> None:
    server.engine.words = [*WRAPPED, "more"]
    fields = {"tools": TOOLS, "tool_choice": "required", "max_output_tokens": words, "stream": stream}
    response = await server.http.post("/v1/responses", json=REQUEST | fields)
    body = response.json() if not stream else json.loads(response.text.strip().splitlines()[-1][6:])["response"]
    assert body["status"] == "incomplete"
    assert [call["arguments"] for call in body["output"]] == ([] if expected is None else [expected])


async def test_tools_that_may_not_be_called_are_ignored(server: FakeServer) -> None:
    response = await server.openai.responses.create(**REQUEST, tools=TOOLS, tool_choice="none")  # type: ignore[arg-type]
    assert response.output_text == "A cat on a mat."
    assert (response.model_extra or {})["onlyseen"]["ignored"] == ["tools[].description", "tools"]
    assert server.engine.requests[0].sampling.grammar is None
    assert (await server.openai.responses.create(**REQUEST, tools=[], tool_choice="auto")).output_text


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": None}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name", None),
        ({"tool_choice": {"type": "function", "function": {"name": "count"}}}, "tool_choice.name", None),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "unsupported_parameter"),
        ({"tools": []}, "tool_choice", None),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].name", None),
        ({"tools": [tool("a", {"type": "array"})]}, "tools[0].parameters.type", None),
        ({"tools": [tool("a", {"properties": {"b": {"type": "wizard"}}})]}, "tools", "invalid_schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", None),
        ({"decoding": {"check": True}}, "decoding.check", None),
        ({"decoding": {"grounding": True}}, "decoding.grounding", None),
        ({"include": ["message.output_text.logprobs"]}, "include", None),
        (
            {"input": [{"role": "user", "content": "a"}, {"type": "function_call", "call_id": "1", "name": "count"}]},
            "input[1].type",
            "unsupported_parameter",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_other_tools_are_refused(
    server: FakeServer, fields: dict[str, Any], param: str, code: str | None
) -> None:
    body = REQUEST | {"tools": TOOLS, "tool_choice": "required"} | fields
    check_refusal(await server.http.post("/v1/responses", json=body), param, code)
    assert not server.engine.requests
