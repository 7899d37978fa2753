"""Forced tool calls: the grammar that reaches the engine, the call in the response, and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from decoding.text.grammar_check import find_compile_error
from server.schemas.tool_calls import ToolCallParser
from tests.server.conftest import FakeServer, StartServer, check_refusal
from tests.server.fakes import FakeEngine
from tests.server.schemas.test_structured_outputs import accepts

COUNT: dict[str, Any] = {
    "type": "object",
    "properties": {"thing": {"$ref": "#/$defs/Thing"}, "number": {"type": "integer"}},
    "required": ["thing", "number"],
    "$defs": {"Thing": {"enum": ["cat", "dog"]}},
}
ARGUMENTS = '{"thing": "cat", "number": 2}'
WRAPPED = f'{{"name": "count", "arguments": {ARGUMENTS}}}'


def tool(name: str, parameters: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


TOOLS = [tool("count", COUNT, description="Count things.", strict=True), tool("stop")]
NAMED = {"type": "function", "function": {"name": "count"}}


def split(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("tools", "choice", "text", "reason"),
    [
        (TOOLS, NAMED, ARGUMENTS, "stop"),
        (TOOLS, "required", WRAPPED, "tool_calls"),
        (TOOLS[:1], "required", ARGUMENTS, "tool_calls"),
    ],
    ids=["named", "required", "required of one"],
)
async def test_answer_is_one_call(
    start_server: StartServer, tools: Any, choice: Any, text: str, reason: str, size: int
) -> None:
    server = await start_server(FakeEngine(words=split(text, size)))
    fields: dict[str, Any] = {"tools": tools, "tool_choice": choice, "n": 2}
    full = await server.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], **fields
    )
    names, arguments = ["", ""], ["", ""]
    reasons: list[Any] = [None, None]
    stream = await server.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], stream=True, logprobs=True, **fields
    )
    entries = 0
    async for chunk in stream:
        for part in chunk.choices:
            assert not part.delta.content
            for call in part.delta.tool_calls or ():
                names[part.index] += (call.function and call.function.name) or ""
                arguments[part.index] += (call.function and call.function.arguments) or ""
            reasons[part.index] = part.finish_reason or reasons[part.index]
            entries += len((part.logprobs and part.logprobs.content) or ())
    assert entries == 2 * len(split(text, size))
    assert (names, arguments, reasons) == (["count"] * 2, [ARGUMENTS] * 2, [reason] * 2)
    ids = set()
    for each in full.choices:
        (call,) = each.message.tool_calls or ()
        assert (each.message.content, each.finish_reason, call.type) == (None, reason, "function")
        assert (call.function.name, call.function.arguments) == ("count", ARGUMENTS)
        ids.add(call.id)
    assert len(ids) == 2


@pytest.mark.parametrize(("words", "expected"), [(2, None), (35, '{"th'), (len(WRAPPED), ARGUMENTS)])
async def test_answer_that_is_cut_off(start_server: StartServer, words: int, expected: str | None) -> None:
    server = await start_server(FakeEngine(words=[*WRAPPED, "more"]))
    choice = (await server.chat(tools=TOOLS, tool_choice="required", max_tokens=words)).json()["choices"][0]
    calls = choice["message"].get("tool_calls") or []
    assert choice["finish_reason"] == "length"
    assert [call["function"]["arguments"] for call in calls] == ([] if expected is None else [expected])


@pytest.mark.parametrize("choice", [NAMED, "required"])
async def test_grammar_forces_the_call(server: FakeServer, choice: Any) -> None:
    await server.chat(tools=TOOLS, tool_choice=choice)
    grammar = server.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert not find_compile_error(grammar.text)
    schema = json.loads(grammar.text)
    if choice == "required":
        assert schema["$defs"]["0"]["properties"]["thing"] == {"$ref": "#/$defs/0/$defs/Thing"}
        schema = schema["$defs"]["1"]
        assert schema == {"type": "object", "additionalProperties": False}
    else:
        assert schema["properties"] == COUNT["properties"]


@pytest.mark.parametrize("keyword", ["$ref", "allOf", "anyOf", "oneOf"])
@pytest.mark.parametrize("tools", [[], TOOLS[1:]], ids=["one tool", "two tools"])
async def test_arguments_may_combine_schemas(server: FakeServer, keyword: str, tools: list[Any]) -> None:
    combined = {"$ref": "#/$defs/Count"} if keyword == "$ref" else {keyword: [{"$ref": "#/$defs/Count"}]}
    response = await server.chat(
        tools=[tool("count", {**combined, "$defs": {"Count": {**COUNT, "$defs": {}}, **COUNT["$defs"]}}), *tools],
        tool_choice="required",
    )
    assert response.status_code == 200, response.text
    grammar = server.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert accepts(grammar.text, WRAPPED if tools else ARGUMENTS)


async def test_tools_that_may_not_be_called_are_ignored(server: FakeServer) -> None:
    body = (await server.chat(tools=TOOLS, tool_choice="none", parallel_tool_calls=False)).json()
    assert body["choices"][0]["message"]["content"] == "A cat on a mat."
    assert body["onlyseen"]["ignored"] == ["tools[].function.description", "tools"]
    assert server.engine.requests[0].sampling.grammar is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": TOOLS}, "tool_choice", "unsupported_parameter"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", None),
        ({"tools": TOOLS, "tool_choice": ["count"]}, "tool_choice", None),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "a"}}},
            "tool_choice.function.name",
            None,
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type", None),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"tools": [*TOOLS, TOOLS[1]], "tool_choice": "required"}, "tools[2].function.name", None),
        ({"tools": [tool("a b")], "tool_choice": "required"}, "tools[0].function.name", None),
        ({"tools": [tool("a", {"type": "array"})], "tool_choice": "none"}, "tools[0].function.parameters.type", None),
        (
            {"tools": [tool("a", {"properties": {"b": {"type": "wizard"}}})], "tool_choice": "required"},
            "tools",
            "invalid_schema",
        ),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools[0].type", None),
        ({"tools": TOOLS * 65, "tool_choice": "required"}, "tools", None),
        ({"tools": TOOLS, "tool_choice": NAMED, "response_format": {"type": "json_object"}}, "response_format", None),
        ({"tools": TOOLS, "tool_choice": NAMED, "ignore_eos": True}, "tools", None),
        ({"tools": TOOLS, "tool_choice": NAMED, "decoding": {"check": True}}, "decoding.check", None),
        ({"functions": [{"name": "a"}]}, "functions", "unsupported_parameter"),
        (
            {"messages": [{"role": "tool", "content": "1", "tool_call_id": "a"}]},
            "messages[0].role",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_other_tools_are_refused(
    server: FakeServer, fields: dict[str, Any], param: str, code: str | None
) -> None:
    response = await server.chat(**fields)
    check_refusal(response, param, code)
    assert not server.engine.requests


def test_arguments_may_end_with_any_brace() -> None:
    parser = ToolCallParser(("a", "ab"))
    pieces = [parser.add(character) for character in '{"name": "ab", "arguments": {"c": {"d": "}"}}}']
    assert "".join(pieces) + parser.finish() == '{"c": {"d": "}"}}'
    assert parser.name == "ab"
