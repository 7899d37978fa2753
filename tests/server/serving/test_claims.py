"""Claims of an answer: `decoding.check` and the strategy `verify`, on all routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from structlog.typing import EventDict

from decoding import registry
from decoding.errors import EngineFailed
from decoding.strategies.verify import Verify
from tests.server.conftest import (
    AsgiClient,
    FakeServer,
    StartServer,
    chat_request,
    data_url,
    image_messages,
    wait_until,
)
from tests.server.fakes import FAKE_STRATEGIES, FakeEngine

WORDS = ("There ", "is ", "a ", "dog. ", "It ", "sits ", "on ", "a ", "table.")
TEXT = "".join(WORDS)
DOG = {"text": "dog", "start": 11, "end": 14, "question": "Is there a dog in the image?", "probability": 0.2}
TABLE = {"text": "table", "start": 29, "end": 34, "question": "Is there a table in the image?", "probability": 0.95}
CHECK = {"check": True}
VERIFY = {"strategy": "verify"}
KEPT = {"action": "kept"}
CAT = KEPT | {"text": "cat", "start": 11, "end": 14, "question": "Is there a cat in the image?", "probability": 0.95}
VERIFIED = [
    DOG | {"start": None, "end": None, "action": "replaced"},
    CAT,
    TABLE | KEPT,
]


@pytest.fixture(autouse=True)
def _use_verify(monkeypatch: pytest.MonkeyPatch, _use_fake_strategies: None) -> None:
    monkeypatch.setattr(registry, "list_strategies", lambda: FAKE_STRATEGIES | {"verify": Verify})


def make_engine(**fields: Any) -> FakeEngine:
    return FakeEngine(WORDS, yes={"dog": 0.2}, replacements={"dog. ": "cat. "}, **fields)


def round_probabilities(claims: list[dict[str, Any]]) -> list[Any]:
    return [claim | {"probability": pytest.approx(claim["probability"])} for claim in claims]


async def chat(server: FakeServer, decoding: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    response = await server.chat(messages=image_messages(), decoding=decoding, **fields)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def read_events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


async def stream_chat(server: FakeServer, decoding: Mapping[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return read_events(await server.chat(messages=image_messages(), decoding=decoding, stream=True, **fields))


async def test_check_adds_claims_and_keeps_the_answer(start_server: StartServer) -> None:
    server = await start_server(make_engine())
    plain, checked = [await chat(server, decoding) for decoding in ({}, CHECK)]
    assert checked["choices"] == plain["choices"]
    assert checked["usage"] == plain["usage"]
    assert checked["onlyseen"]["claims"] == round_probabilities([DOG, TABLE])
    assert "claims" not in plain["onlyseen"]
    assert checked["onlyseen"]["strategy"] == "plain"
    assert checked["onlyseen"]["forward_passes"] == plain["onlyseen"]["forward_passes"] + 2 * 3  # claims and views


@pytest.mark.parametrize("check", [False, None])
async def test_check_can_be_off(start_server: StartServer, check: bool | None) -> None:
    document = await chat(await start_server(make_engine()), {"check": check})
    assert "claims" not in document["onlyseen"]


async def test_answer_without_claims_has_an_empty_list(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(["Yes"]))
    assert (await chat(server, CHECK))["onlyseen"]["claims"] == []
    assert len(server.engine.requests) == 1


async def test_options_reach_the_check(start_server: StartServer) -> None:
    server = await start_server(make_engine())
    document = await chat(
        server, {"check": {"debias": 0.5, "question": "Do you see {claim}?", "language": "en", "views": 1}}
    )
    claim = document["onlyseen"]["claims"][0]
    assert claim["question"] == "Do you see a dog?"
    assert claim["probability"] == pytest.approx(
        1 / 3
    )  # half of the log-odds of 0.2, for the same P(yes) without image
    assert document["onlyseen"]["forward_passes"] == len(WORDS) + 4


@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        ({"check": {"debias": 1.5}}, "decoding.check.debias"),
        ({"check": {"debias": "x"}}, "decoding.check.debias"),
        ({"check": {"views": 4}}, "decoding.check.views"),
        ({"check": {"language": "tlh"}}, "decoding.check.language"),
        ({"check": {"question": "Is it there?"}}, "decoding.check.question"),
        ({"check": {"threshold": 0.5}}, "decoding.check.threshold"),
        ({"check": 1}, "decoding.check"),
        ({"check": "yes"}, "decoding.check"),
        ({"check": []}, "decoding.check"),
        ({"strategy": "verify", "check": {"debias": 0.5}}, "decoding.check.debias"),
    ],
)
async def test_invalid_option_is_refused(start_server: StartServer, decoding: dict[str, Any], param: str) -> None:
    server = await start_server(make_engine())
    response = await server.chat(messages=image_messages(), decoding=decoding)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert not server.engine.requests


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "Hello."}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "Hello."}], "stream": True}),
        ("responses", {"input": "Hello."}),
        ("completions", {"prompt": "Hello."}),
    ],
)
@pytest.mark.parametrize("strategy", ["plain", "verify"])
async def test_check_needs_an_image(start_server: StartServer, url: str, fields: dict[str, Any], strategy: str) -> None:
    server = await start_server(make_engine())
    decoding = CHECK | {"strategy": strategy}
    response = await server.http.post(f"/v1/{url}", json={"model": "tiny", "decoding": decoding} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "decoding.check")
    assert not server.engine.requests


async def test_verify_reports_its_own_claims(start_server: StartServer) -> None:
    server = await start_server(make_engine())
    for decoding in (VERIFY, VERIFY | CHECK):
        document = await chat(server, decoding)
        assert document["choices"][0]["message"]["content"] == TEXT.replace("dog", "cat")
        assert document["usage"]["completion_tokens"] == len(WORDS)
        assert document["onlyseen"]["claims"] == round_probabilities(VERIFIED)


async def test_verify_continues_texts_without_claims(start_server: StartServer) -> None:
    server = await start_server(make_engine())
    body = {"model": "tiny:verify", "prompt": "Once", "logprobs": 1, "stream": True}
    events = read_events(await server.http.post("/v1/completions", json=body))
    assert "".join(event["choices"][0]["text"] for event in events) == TEXT
    assert events[-1]["onlyseen"]["claims"] == []


@pytest.mark.parametrize("include_usage", [False, True])
async def test_stream_sends_claims_after_their_sentence(start_server: StartServer, include_usage: bool) -> None:
    server = await start_server(make_engine())
    chunks = await stream_chat(server, CHECK, stream_options={"include_usage": include_usage})
    content = [
        chunk["onlyseen"]["claims"] if chunk.get("onlyseen") else chunk["choices"][0]["delta"].get("content")
        for chunk in chunks
    ]
    assert content[:5] == ["", *WORDS[:4]]
    assert content[5] == round_probabilities([DOG])
    assert content[-1] == round_probabilities([DOG, TABLE])
    updates = [chunk for chunk in chunks[:-1] if chunk.get("onlyseen")]
    assert [(update["choices"][0]["delta"], update["choices"][0]["finish_reason"]) for update in updates] == [
        ({}, None),
        ({}, None),
    ]
    assert [list(update["onlyseen"]) for update in updates] == [["claims"], ["claims"]]
    assert "".join(text for text in content if isinstance(text, str)) == TEXT


async def test_openai_client_reads_a_checked_stream(start_server: StartServer) -> None:
    server = await start_server(make_engine())
    async with server.openai.chat.completions.stream(
        **chat_request(messages=image_messages()), extra_body={"decoding": CHECK}
    ) as stream:
        _ = [event async for event in stream]
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == TEXT


@pytest.mark.parametrize("decoding", [CHECK, VERIFY])
async def test_claims_have_no_logprobs(start_server: StartServer, decoding: dict[str, Any]) -> None:
    server = await start_server(make_engine())
    fields = {"logprobs": True, "top_logprobs": 1}
    document = await chat(server, decoding, **fields)
    entries = document["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == document["choices"][0]["message"]["content"]
    chunks = await stream_chat(server, decoding, **fields)
    streamed = [(chunk["choices"][0].get("logprobs") or {}).get("content") or [] for chunk in chunks]
    assert [entry for each in streamed for entry in each] == entries


async def test_sentence_that_verify_ends_has_no_logprob(start_server: StartServer) -> None:
    """The full stop that `verify` adds is text of the answer, but no token of the model."""
    words = ("There", " is", " a", " cat", " and", " a", " dog.", " It", " sleeps.")
    server = await start_server(FakeEngine(words, yes={"dog": 0.1}, replacements={" dog.": " cup."}))
    document = await chat(server, VERIFY | {"verify": {"tries": 0}}, logprobs=True)
    choice = document["choices"][0]
    entries = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert choice["message"]["content"].startswith("There is a cat.")
    assert entries[:4] == list(words[:4])
    assert "." not in entries
    assert document["usage"]["completion_tokens"] == len(entries)
    assert [claim["action"] for claim in document["onlyseen"]["claims"][:2]] == ["kept", "dropped"]


@pytest.mark.parametrize("decoding", [CHECK, VERIFY])
async def test_claims_name_their_choice(start_server: StartServer, decoding: dict[str, Any]) -> None:
    server = await start_server(make_engine())
    one, two = await chat(server, decoding), await chat(server, decoding, n=2)
    assert [choice["message"]["content"] for choice in two["choices"]] == [one["choices"][0]["message"]["content"]] * 2
    claims = one["onlyseen"]["claims"]
    assert two["onlyseen"]["claims"] == [claim | {"choice": choice} for choice in (0, 1) for claim in claims]
    assert two["usage"]["completion_tokens"] == 2 * len(WORDS)
    surplus = two["onlyseen"]["forward_passes"] - 2 * one["onlyseen"]["forward_passes"]
    questions = 3 * len(claims)  # a choice that is ahead of the other has asked them for both
    draft = 0 if decoding is CHECK else len(WORDS)  # one that fails may run on before its abort
    assert -questions - draft <= surplus <= draft
    chunks = await stream_chat(server, decoding, n=2)
    updates = [chunk for chunk in chunks if chunk.get("onlyseen")][:-1]
    assert {update["choices"][0]["index"] for update in updates} == {0, 1}
    for update in updates:
        assert {claim["choice"] for claim in update["onlyseen"]["claims"]} == {update["choices"][0]["index"]}


async def test_choices_of_a_checked_answer_have_their_own_seeds(start_server: StartServer) -> None:
    server = await start_server(make_engine())
    await chat(server, CHECK, n=2, seed=5)
    assert [request.sampling.seed for request in server.engine.requests if not request.scored_texts] == [5, 6]


@pytest.mark.parametrize("decoding", [CHECK, VERIFY])
async def test_limit_cuts_a_checked_answer(start_server: StartServer, decoding: dict[str, Any]) -> None:
    document = await chat(await start_server(make_engine()), decoding, max_tokens=3, stop=["never"])
    choice = document["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("There is a ", "length")
    assert document["usage"]["completion_tokens"] == 3
    assert document["onlyseen"]["claims"] == []


async def test_check_keeps_grounding_and_trace(start_server: StartServer) -> None:
    server = await start_server(make_engine())
    document = await chat(server, CHECK | {"strategy": "blind", "grounding": True, "trace": True})
    receipt, entries = document["onlyseen"], document["choices"][0]["logprobs"]["content"]
    assert (receipt["strategy"], receipt["branches"]) == ("blind", ["blind/none", "grounding/blind"])
    assert [entry["grounding"] for entry in entries] == [0.5] * len(WORDS)
    assert len(receipt["claims"]) == 2
    assert "pictures" in receipt


async def test_answer_of_a_vote_is_checked(start_server: StartServer) -> None:
    document = await chat(await start_server(make_engine()), CHECK | {"strategy": "vote"})
    assert document["onlyseen"]["claims"] == round_probabilities([DOG, TABLE])


@pytest.mark.parametrize("decoding", [CHECK, VERIFY])
async def test_responses_have_claims(start_server: StartServer, decoding: dict[str, Any]) -> None:
    server = await start_server(make_engine())
    parts = [{"type": "input_image", "image_url": data_url()}, {"type": "input_text", "text": "Describe it."}]
    body: dict[str, Any] = {"model": "tiny", "input": [{"role": "user", "content": parts}], "decoding": decoding}
    full = (await server.http.post("/v1/responses", json=body)).json()
    claims = full["onlyseen"]["claims"]
    assert len(claims) == (2 if decoding == CHECK else 3)
    events = read_events(await server.http.post("/v1/responses", json=body | {"stream": True}))
    updates = [event for event in events if "onlyseen" in event]
    assert {(update["type"], update["delta"]) for update in updates} == {("response.output_text.delta", "")}
    assert [claim for update in updates for claim in update["onlyseen"]["claims"]] == claims
    assert events[-1]["response"]["onlyseen"]["claims"] == claims
    request = {"model": "tiny", "input": body["input"], "extra_body": {"decoding": decoding}}
    async with server.openai.responses.stream(**request) as stream:
        _ = [event async for event in stream]
        assert (await stream.get_final_response()).output_text == full["output"][0]["content"][0]["text"]


async def test_log_has_no_claims(start_server: StartServer, log_entries: list[EventDict]) -> None:
    await chat(await start_server(make_engine()), CHECK)
    (receipt,) = [entry for entry in log_entries if entry["event"] == "receipt"]
    assert "claims" not in receipt
    assert "dog" not in str(receipt)


@pytest.mark.parametrize("decoding", [CHECK, VERIFY])
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2}])
async def test_disconnect_ends_drafts_and_checks(
    start_server: StartServer, decoding: dict[str, Any], fields: dict[str, Any]
) -> None:
    engine = FakeEngine(["A ", "dog. "] * 500, pause=0.01)
    server = await start_server(engine)
    client = AsgiClient(server.app, messages=image_messages(), decoding=decoding, **fields)
    call = asyncio.create_task(client.call())
    await wait_until(lambda: len(engine.requests) > fields.get("n", 1))  # a check has begun
    client.disconnect.set()
    await asyncio.wait_for(call, timeout=1)
    assert engine.running == 0


@pytest.mark.parametrize("decoding", [CHECK, VERIFY])
async def test_timeout_ends_drafts_and_checks(start_server: StartServer, decoding: dict[str, Any]) -> None:
    server = await start_server(FakeEngine(["A ", "dog. "] * 500, pause=0.01), request_timeout=0.2)
    events = await stream_chat(server, decoding)
    assert events[-1]["error"]["code"] == "timeout"
    assert server.engine.running == 0
    assert (await server.chat(messages=image_messages(), decoding=decoding)).status_code == 504
    assert server.engine.running == 0


async def test_failure_of_the_engine_ends_a_checked_answer(start_server: StartServer) -> None:
    server = await start_server(make_engine(failure=EngineFailed("It broke."), fails_after=6))
    response = await server.chat(messages=image_messages(), decoding=CHECK)
    assert response.status_code == 500
    assert server.engine.running == 0
