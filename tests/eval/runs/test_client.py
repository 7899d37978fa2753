"""Failed requests: retries, invalid responses and timeouts."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic_core import from_json

from eval.core.yes_score import YesScore
from eval.errors import InvalidResponse, RequestRejected, ServerUnavailable
from eval.runs.client import EvalClient, parse_answer, read_bounded
from tests.eval.cli_driver import invoke_run, output_of, read_results, read_stored_answers, reply_by_hash
from tests.eval.fake_server import ScriptedReply, ScriptedServer, prompt_of, start_server, strategy_of
from tests.eval.runs.test_request import make_request


@pytest.mark.parametrize(
    "reply",
    [
        ScriptedReply("overloaded", status=429, headers={"retry-after": "0"}),
        ScriptedReply("broken", status=500),
        ScriptedReply(raw=b"<html>gateway</html>"),
        ScriptedReply(raw=b"[1]"),
        ScriptedReply(raw=b'{"choices": []}'),
        ScriptedReply(raw=b'{"choices": [{"message": {"content": null}}]}'),
        ScriptedReply(raw=b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'),
        ScriptedReply(raw=b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}'),
        ScriptedReply(raw=b'{"choices": [{"message": {"content": "Yes"}}], "onlyseen": {"strategy": "\\udc80"}}'),
        ScriptedReply(raw=b'{"choices": [{"message": {"content": "Yes"}}], "more": ' + b"[" * 100_000),
        ScriptedReply(raw=b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ScriptedReply(raw='{"choices": [{"message": {"content": "Café"}}]}'.encode("latin-1")),
        ScriptedReply(raw='{"choices": [{"message": {"content": "Yes"}}]}'.encode("utf-16")),
        ScriptedReply(raw=b"no gzip", headers={"content-encoding": "gzip"}),
        ScriptedReply(raw=b"no gzip", status=500, headers={"content-encoding": "gzip"}),
        ScriptedReply(raw=b"\\ud800", headers={"content-type": "text/plain; charset=unicode_escape"}),
        ScriptedReply(raw=b"\\ud800", status=400, headers={"content-type": "text/plain; charset=unicode_escape"}),
        ScriptedReply(raw=b'{"error": {"message": "\\ud800"}}', status=400),
        ScriptedReply(raw=b"1" * 5000),
        ScriptedReply(raw=gzip.compress(b" " * 70_000_000), headers={"content-encoding": "gzip"}),
        ScriptedReply("busy", status=429, headers={"retry-after": "nan"}),
        ScriptedReply("Yes", finish="content_filter"),
        ScriptedReply("Yes", receipt={"strategy": "vhr", "parameters": {}}),
        ScriptedReply(
            "Yes", receipt={"strategy": "agla", "parameters": {"agla": {"alpha": 9.0, "beta": 0.5, "text": None}}}
        ),
    ],
)
def test_a_failed_request_is_reported_and_sent_again_by_the_next_run(
    data: Path, tmp_path: Path, reply: ScriptedReply
) -> None:
    def script(request: dict[str, Any]) -> ScriptedReply:
        must_fail = is_failing and strategy_of(request) == "agla" and "dog" in prompt_of(request)
        return reply if must_fail else reply_by_hash(request)

    is_failing = True
    with start_server(ScriptedServer(script)) as server:
        result = invoke_run(server, data, tmp_path / "run", "--strategies", "agla", "--concurrency", "4")
        assert result.exit_code == 3, output_of(result)
        assert "10 questions have no answer" in output_of(result)
        missing = {each["label"]: each["missing"] for each in read_results(tmp_path / "run")["arms"]}
        assert missing["plain"] == 0
        assert missing["agla"] > 0
        assert not any("dog" in each for each in map(str, read_stored_answers(tmp_path / "run")))
        strategies = [row["strategy"] for row in read_results(tmp_path / "run")["scopes"][0]["rows"]]
        assert strategies == ["plain", "agla"]
        is_failing, sent = False, len(server.requests)
        assert invoke_run(server, data, tmp_path / "run", "--strategies", "agla").exit_code == 0
        assert len(server.requests) == sent + 10


def test_a_failed_request_is_retried(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EvalClient, "retry_pause", 0.01)
    attempts: dict[str, int] = {}

    def script(request: dict[str, Any]) -> ScriptedReply:
        body = json.dumps(request)
        attempts[body] = attempts.get(body, 0) + 1
        return ScriptedReply("busy", status=503) if attempts[body] < 3 else reply_by_hash(request)

    with start_server(ScriptedServer(script)) as server:
        result = invoke_run(server, data, tmp_path / "run", "--retries", "3", "--limit", "6")
    assert result.exit_code == 0, output_of(result)
    assert {answer["attempts"] for answer in read_stored_answers(tmp_path / "run")} == {3}


def test_a_timeout_is_reported(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(lambda request: ScriptedReply("Yes", delay=2))) as server:
        result = invoke_run(server, data, tmp_path / "run", "--timeout", "0.2", "--limit", "6")
    assert "no response from" in output_of(result)


def test_an_empty_answer_with_a_generated_token_is_scored(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(lambda request: ScriptedReply(""))) as server:  # one token: the end token
        result = invoke_run(server, data, tmp_path / "run")
    assert "180 answers are empty" in output_of(result)


@pytest.mark.parametrize("passes", [0, 54])
def test_an_answer_of_which_a_strategy_sends_nothing_is_an_answer(tmp_path: Path, passes: int) -> None:
    document = {
        "choices": [{"message": {"content": ""}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 0},
        "onlyseen": {"strategy": "plain", "steps": 0, "forward_passes": passes},
    }
    if passes:
        assert parse_answer(document, make_request(tmp_path), "none", 1.0, 1).text == ""
    else:
        with pytest.raises(InvalidResponse, match="no token was generated"):
            parse_answer(document, make_request(tmp_path), "none", 1.0, 1)


@pytest.mark.parametrize("data", [b"1", b'[{"id": []}, {"id": 1}, 2]', b"null"])
async def test_a_list_of_models_that_is_none_is_ignored(data: bytes) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b'{"data": ' + data + b"}")

    async with EvalClient("http://server") as client:
        client.http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(respond))
        assert await client.list_models() == {}


async def test_requests_name_their_image_for_balancers(tmp_path: Path) -> None:
    received: list[str | None] = []

    def respond(request: httpx.Request) -> httpx.Response:
        received.append(request.headers.get("x-session-id"))
        return httpx.Response(200, json={"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]})

    requests = [make_request(tmp_path, image=name) for name in ("one.png", "two.png", "one.png")]
    async with EvalClient("http://server") as client:
        client.http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(respond))
        for request in requests:
            await client.complete(request, "none")
    assert received == [hashlib.sha256(name).hexdigest() for name in (b"one.png", b"two.png", b"one.png")]


def test_a_receipt_with_nested_and_nonfinite_values_is_stored(data: Path, tmp_path: Path) -> None:
    deep = "[" * 190 + "]" * 190
    receipt = f'{{"strategy": "plain", "parameters": {{"plain": {{}}}}, "deep": {deep}, "nan": NaN, "big": {10**400}}}'
    reply = ScriptedReply(raw=f'{{"choices": [{{"message": {{"content": "Yes"}}}}], "onlyseen": {receipt}}}'.encode())
    with start_server(ScriptedServer(lambda request: reply)) as server:
        for _ in range(2):
            result = invoke_run(server, data, tmp_path / "run", "--strategies", "plain", "--limit", "6")
            assert result.exit_code == 0, output_of(result)
    assert len(read_stored_answers(tmp_path / "run")) == 18


NUMBERS = {
    "logprobs.content.0.logprob": '"logprobs": {"content": [{"token": "Yes", "logprob": %s}]}',
    "logprobs.content.0.top_logprobs.0.logprob": (
        '"logprobs": {"content": [{"token": "Yes", "logprob": 0, "top_logprobs": [{"token": "No", "logprob": %s}]}]}'
    ),
    "logprobs.content.0.grounding": '"logprobs": {"content": [{"token": "Yes", "logprob": 0, "grounding": %s}]}',
    "claims.0.probability": '"claims": [{"start": 0, "end": 3, "probability": %s}]',
    "steps": '"steps": %s',
    "forward_passes": '"forward_passes": %s',
    "timings.total": '"timings": {"total": %s}',
}


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", "null", '"1"'])
@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_that_results_cannot_be_computed_from_is_refused(tmp_path: Path, field: str, number: str) -> None:
    if (field, number) == ("logprobs.content.0.grounding", "null"):
        pytest.skip("a token may have no grounding")
    fields = NUMBERS[field] % number
    choice, receipt = (fields, "") if field.startswith("logprobs") else ('"logprobs": null', f", {fields}")
    document = from_json(
        f'{{"choices": [{{"message": {{"content": "Yes"}}, {choice}}}], "onlyseen": {{"strategy": "plain"{receipt}}}}}'
    )
    with pytest.raises(InvalidResponse, match=field):
        parse_answer(document, make_request(tmp_path), "field", 0.1, 1)


@pytest.mark.parametrize("logprobs", ["null", '{"content": null}', '{"content": []}'])
def test_answer_without_log_probabilities_has_no_score(tmp_path: Path, logprobs: str) -> None:
    document = from_json(f'{{"choices": [{{"message": {{"content": "Yes"}}, "logprobs": {logprobs}}}]}}')
    request = replace(make_request(tmp_path), yes_score=True)
    assert parse_answer(document, request, "none", 0.1, 1).yes_score is None


def test_token_without_alternatives_has_a_missing_score(tmp_path: Path) -> None:
    logprobs = '{"content": [{"token": "Yes", "logprob": 0, "top_logprobs": null}]}'
    document = from_json(f'{{"choices": [{{"message": {{"content": "Yes"}}, "logprobs": {logprobs}}}]}}')
    request = replace(make_request(tmp_path), yes_score=True)
    assert parse_answer(document, request, "none", 0.1, 1).yes_score == YesScore(kind="missing")
    assert parse_answer(document, make_request(tmp_path), "none", 0.1, 1).yes_score is None


async def test_a_response_that_drips_is_given_up(tmp_path: Path) -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b" "

    async with EvalClient("http://server", timeout=0.3, attempts=1) as client:
        client.http = httpx.AsyncClient(
            base_url="http://server",
            transport=httpx.MockTransport(lambda request: httpx.Response(200, content=drip())),
            timeout=client.http.timeout,
        )
        async with asyncio.timeout(30):
            with pytest.raises(ServerUnavailable, match=r"no response from http://server within 0\.3 s"):
                await client.complete(make_request(tmp_path), "none")


async def test_compressed_responses_are_refused_without_decompressing_them() -> None:
    bomb = gzip.compress(gzip.compress(bytes(50_000_000)))
    assert len(bomb) < 1_000

    def respond(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        return httpx.Response(200, stream=httpx.ByteStream(bomb), headers={"content-encoding": "gzip, gzip"})

    async with EvalClient("http://server", attempts=1) as client:
        client.http = httpx.AsyncClient(
            base_url="http://server", headers=client.http.headers, transport=httpx.MockTransport(respond)
        )
        tracemalloc.start()
        with pytest.raises(InvalidResponse, match="compressed"):
            await client.list_models()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def build_client_response(status: int, headers: dict[str, str], body: bytes) -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(body), headers=headers)


@pytest.mark.parametrize("status", [400, 401])
async def test_compressed_refusal_is_not_retried(status: int) -> None:
    response = build_client_response(status, {"content-encoding": "gzip"}, gzip.compress(b"refused"))
    requests = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return response

    async with EvalClient("http://server", retry_pause=0.0) as client:
        client.http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(respond))
        with pytest.raises(RequestRejected) as rejection:
            await client.list_models()
    assert (rejection.value.status, len(requests)) == (status, 1)


async def test_compressed_refusal_keeps_its_retry_after() -> None:
    response = build_client_response(429, {"content-encoding": "gzip", "retry-after": "7"}, gzip.compress(b"later"))
    async with EvalClient("http://server", attempts=1) as client:
        transport = httpx.MockTransport(lambda _: response)
        client.http = httpx.AsyncClient(base_url="http://server", transport=transport)
        with pytest.raises(ServerUnavailable) as refusal:
            await client.list_models()
    assert refusal.value.retry_after == 7


@pytest.mark.parametrize("encoding", ["", "Identity", "IDENTITY"])
async def test_response_without_an_encoding_is_read(encoding: str) -> None:
    response = await read_bounded(build_client_response(200, {"content-encoding": encoding}, b"text"))
    assert response.content == b"text"
