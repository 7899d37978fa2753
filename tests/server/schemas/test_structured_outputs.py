"""`structured_outputs`: the grammar that reaches the engine, its language, and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from decoding.text.grammar_check import compile_grammar
from tests.server.conftest import FakeServer, check_refusal

LARK = 'start: "it is " COLOR\nCOLOR: "red" | "blue"'
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
TAGS: dict[str, Any] = {
    "type": "structural_tag",
    "triggers": ["<tool", 'call "'],
    "structures": [
        {"begin": "<tool=a>", "schema": SCHEMA, "end": "</tool>"},
        {"begin": "<tool=b>\n", "schema": {"enum": ["é", "q"]}, "end": ""},
        {"begin": 'call "', "end": '"'},
    ],
}
IN_TAGS = [
    "",
    "It is <to",
    'a <tool=a>{"n": 3}</tool> b <tool=b>\n"é"',
    'call "[1]" end',
    '<tool=a>{"n": 3}</tool>' * 3,
]
OUTSIDE = ["a <tool", "<tool=c>", '<tool=a>{"n": 3}', '<tool=a>{"n": "q"}</tool>', '<tool=b>\n"z"', 'call "x"']
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "choice": (['a "b"', "cat\n", "é"], ['a "b"', "cat\n", "é"], ["a", "cat", ""]),
    "regex": ("[0-9]{2,3}|no", ["12", "123", "no"], ["1", "1234", "12 "]),
    "grammar": (LARK, ["it is red", "it is blue"], ["it is ", "red"]),
    "json": ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, ['{"a": 1}'], ["{}"]),
    "json_object": (True, ["{}"], ["[]"]),
    "structural_tag": (json.dumps(TAGS), IN_TAGS, OUTSIDE),
}


def accepts(grammar: str, text: str) -> bool:
    ll_matcher = compile_grammar(LLTokenizer("byte"), grammar)
    assert not ll_matcher.get_error()
    return bool(ll_matcher.consume_tokens(list(text.encode())) and ll_matcher.is_accepting())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("route", ["v1/chat/completions", "v1/completions"])
async def test_constraint_reaches_the_engine(server: FakeServer, name: str, route: str) -> None:
    value, inside, outside = CASES[name]
    prompt = {"prompt": "a"} if route == "v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    body = {"model": "tiny", "structured_outputs": {name: value, "disable_any_whitespace": True}, **prompt}
    response = await server.http.post(f"/{route}", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["onlyseen"]["ignored"] == ["structured_outputs.disable_any_whitespace"]
    grammar = server.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert server.engine.compiled_grammars == [grammar]
    assert [accepts(grammar.text, text) for text in inside + outside] == [True] * len(inside) + [False] * len(outside)


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        ({}, "structured_outputs", None),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs", None),
        ({"regex": "(a"}, "structured_outputs.regex", "invalid_schema"),
        ({"regex": "(?=a)b"}, "structured_outputs.regex", "invalid_schema"),
        ({"regex": "((a{999}){999}){999}"}, "structured_outputs.regex", "invalid_schema"),
        ({"regex": "((a{ 999 }){ 999 }){ 999 }"}, "structured_outputs.regex", "invalid_schema"),
        ({"grammar": "start: (A{ 99 }){ 99 }\nA: /a/"}, "structured_outputs.grammar", "invalid_schema"),
        ({"regex": "(?x)(a{99#\n}){99#\n}"}, "structured_outputs.regex", "invalid_schema"),
        ({"grammar": "start: A\nA: /(a{99#\n}){99#\n}/x"}, "structured_outputs.grammar", "invalid_schema"),
        ({"regex": "a" * 64_001}, "structured_outputs.regex", None),
        ({"regex": ""}, "structured_outputs.regex", None),
        ({"choice": []}, "structured_outputs.choice", None),
        ({"choice": [""]}, "structured_outputs.choice[0]", None),
        ({"choice": ["a" * 990] * 100}, "structured_outputs.choice", "invalid_schema"),
        ({"choice": ["a"] * 1001}, "structured_outputs.choice", None),
        ({"grammar": 'root ::= "a"'}, "structured_outputs.grammar", "invalid_schema"),
        ({"grammar": "start: <[5]>"}, "structured_outputs.grammar", "invalid_schema"),
        ({"grammar": "start: <|end|>"}, "structured_outputs.grammar", "invalid_schema"),
        ({"grammar": "start: <image>"}, "structured_outputs.grammar", "invalid_schema"),
        ({"grammar": "start: %json {}"}, "structured_outputs.grammar", "invalid_schema"),
        ({"grammar": "start: A{99}\nA: B{99}\nB: /b/"}, "structured_outputs.grammar", "invalid_schema"),
        ({"grammar": "start: /a/ & /b/"}, "structured_outputs.grammar", "invalid_schema"),
        ({"json": {"type": "wizard"}}, "structured_outputs.json", "invalid_schema"),
        ({"json": "{}"}, "structured_outputs.json", None),
        ({"json_object": False}, "structured_outputs.json_object", None),
        ({"structural_tag": "a"}, "structured_outputs.structural_tag", None),
        ({"structural_tag": "[" * 60_000}, "structured_outputs.structural_tag", None),
        ({"structural_tag": "[]"}, "structured_outputs.structural_tag", None),
        ({"structural_tag": json.dumps(TAGS | {"triggers": []})}, "structured_outputs.structural_tag", None),
        ({"structural_tag": json.dumps(TAGS), "json": {}}, "structured_outputs", None),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_other_constraints_are_refused(server: FakeServer, value: Any, param: str, code: str | None) -> None:
    response = await server.chat(structured_outputs=value)
    check_refusal(response, param, code)
    assert len(response.content) < 1000
    assert not server.engine.requests


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"ignore_eos": True}, "structured_outputs"),
        ({"stop_token_ids": [1]}, "structured_outputs"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "required"}, "structured_outputs"),
        ({"model": "tiny:vote"}, "structured_outputs"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_combination_is_refused(server: FakeServer, fields: dict[str, Any], param: str) -> None:
    response = await server.chat(**{"structured_outputs": {"choice": ["a"]}, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_structural_tag_is_a_response_format(server: FakeServer) -> None:
    assert (await server.chat(response_format=TAGS)).status_code == 200
    grammar = server.engine.requests[0].sampling.grammar
    assert grammar is not None
    assert all(accepts(grammar.text, text) for text in IN_TAGS)
    assert not any(accepts(grammar.text, text) for text in OUTSIDE)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"format": {"type": "any_text"}}, "response_format.format", "unsupported_parameter"),
        ({"structures": []}, "response_format.structures", None),
        ({"structures": [TAGS["structures"][0]] * 65}, "response_format.structures", None),
        ({"triggers": ["<other"]}, "response_format", "invalid_schema"),
        ({"triggers": ["<tool", "<t", 'call "']}, None, None),  # no tag belongs to the second one
        (
            {
                "triggers": ["<tool", "<t", 'call "'],
                "structures": [*TAGS["structures"], {"begin": "<to", "schema": {}, "end": ""}],
            },
            "response_format",
            "invalid_schema",
        ),
        (
            {"structures": [{"begin": "<tool", "schema": {"type": "wizard"}, "end": ""}]},
            "response_format",
            "invalid_schema",
        ),
        (
            {
                "structures": [
                    {"begin": "<tool", "schema": {"properties": {str(n): {} for n in range(501)}}, "end": ""}
                ]
                * 2
            },
            "response_format",
            "invalid_schema",
        ),
        (
            {"structures": [{"begin": "<tool", "schema": {"minLength": 99_999}, "end": ""}]},
            "response_format",
            "invalid_schema",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_structural_tags_that_cannot_be_enforced_are_refused(
    server: FakeServer, changes: dict[str, Any], param: str | None, code: str | None
) -> None:
    response = await server.chat(response_format=TAGS | changes)
    if param is None:
        assert response.status_code == 200
    else:
        check_refusal(response, param, code)
        assert not server.engine.requests
