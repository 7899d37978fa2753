"""Error responses in the log and in the metrics."""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import pytest
import structlog
from structlog.typing import EventDict

from decoding.errors import BadRequest
from decoding.outputs import ClaimAction
from decoding.strategies.verify import Verify
from server.errors import build_error_response
from server.middleware.http import HEALTH_PATHS
from server.observability import metrics, refusals
from server.observability.logs import configure_logging
from server.observability.refusals import MAX_LOGGED_PARAM, hide_content, report_error
from server.schemas.response import ClaimEntry
from tests.server.conftest import FakeServer, StartServer, chat_request, image_messages
from tests.server.fakes import FakeEngine
from tests.server.observability.test_metrics import read_metrics

SECRET = "kolibri"
KEY = "key-of-a-client"

# Each puts the secret where a refusal may repeat it. Names of fields, also those in the suffix of a model, are logged.
HOSTILE_FIELDS: tuple[dict[str, Any], ...] = (
    {"model": SECRET},
    {"model": f"tiny:{SECRET}"},
    {"model": f"tiny:it's '{SECRET}"},
    {"model": f"tiny:{SECRET}' and '"},
    {"model": f"tiny:blind:alpha={SECRET}"},
    {"messages": [{"role": SECRET, "content": SECRET}]},
    {"messages": [{"role": "user", "content": [{"type": SECRET, "text": SECRET}]}]},
    {"messages": [{"role": "user", "content": f"{SECRET} " * 5000}]},
    {"messages": image_messages(SECRET)},
    {"messages": image_messages(f"https://{SECRET}.example.org/{SECRET}")},
    {"messages": image_messages(f"data:image/png;base64,{SECRET}")},
    {"temperature": SECRET},
    {"temperature": SECRET, "top_p": {SECRET: SECRET}},
    {"stop": [SECRET] * 5},
    {"decoding": {"strategy": SECRET}},
    {"decoding": {"strategy": f"blind+{SECRET}"}},
    {"decoding": {"strategy": "blind", "blind": {"alpha": SECRET}}},
    {"decoding": SECRET},
    {"tools": [{"type": "function", "function": {"name": SECRET}}]},
    {"tools": [{"type": "function", "function": {"name": f"{SECRET} {SECRET}"}}]},
    {"tools": [{"type": SECRET}]},
    {"tools": [{"type": "function", "function": {"name": SECRET}}] * 2, "tool_choice": "required"},
    {
        "tools": [{"type": "function", "function": {"name": SECRET, "parameters": {"type": SECRET}}}],
        "tool_choice": "required",
    },
    {
        "tools": [{"type": "function", "function": {"name": SECRET, "parameters": {"properties": {SECRET: SECRET}}}}],
        "tool_choice": "required",
    },
    {"tool_choice": SECRET},
    {"tool_choice": {"type": SECRET}},
    {"tool_choice": {"type": "function", "function": {"name": SECRET}}},
    {"tool_choice": {"type": "function", "function": {"name": f"{SECRET}' and '{SECRET}"}}},
    {"structured_outputs": SECRET},
    {"structured_outputs": {"regex": SECRET, "choice": [SECRET]}},
    {"structured_outputs": {"regex": f"({SECRET}"}},
    {"structured_outputs": {"regex": f"(?P<{SECRET}>a)(?P={SECRET})"}},
    {"structured_outputs": {"choice": [SECRET, 1]}},
    {"structured_outputs": {"choice": []}, "temperature": SECRET},
    {"structured_outputs": {"grammar": SECRET}},
    {"structured_outputs": {"grammar": f"start: {SECRET}"}},
    {"structured_outputs": {"grammar": f'%import {SECRET}.{SECRET}\nstart: "{SECRET}"'}},
    {"structured_outputs": {"grammar": f'start: "{SECRET}'}},
    {"structured_outputs": {"grammar": f"start: <{SECRET}>"}},
    {"structured_outputs": {"json": {"type": SECRET}}},
    {"structured_outputs": {"json": {"$ref": f"#/$defs/{SECRET}"}}},
    {"structured_outputs": {"json": {"type": "string", "pattern": f"({SECRET}"}}},
    {"response_format": {"type": SECRET}},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": SECRET, "pattern": SECRET}},
        }
    },
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "string", "pattern": f"({SECRET}"}},
        }
    },
)


def select_refusals(entries: list[EventDict]) -> list[EventDict]:
    return [entry for entry in entries if entry["event"].endswith("_refused")]


async def test_refusal_is_logged_with_code_param_and_message(server: FakeServer, log_entries: list[EventDict]) -> None:
    assert (await server.chat(temperature=9)).status_code == 400
    (entry,) = select_refusals(log_entries)
    assert entry == {
        "event": "request_refused",
        "log_level": "info",
        "request_id": "test",
        "status": 400,
        "code": None,
        "param": "temperature",
        "message": "temperature: Input should be less than or equal to 2.",
    }


@pytest.mark.parametrize("fields", HOSTILE_FIELDS, ids=lambda fields: str(fields)[:60])
async def test_log_of_a_refusal_has_no_content_of_the_request(
    server: FakeServer, log_entries: list[EventDict], fields: dict[str, Any]
) -> None:
    server.engine.max_words = 1000
    response = await server.chat(**fields)
    assert 400 <= response.status_code < 500, response.text
    (entry,) = select_refusals(log_entries)
    assert entry["message"]
    assert SECRET not in str(log_entries)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/models", {"authorization": f"Bearer {SECRET}"}),
        ("/v1/models/tiny", {"host": f"{SECRET}.example.org", "authorization": f"Bearer {KEY}"}),
        (f"/v1/files/{SECRET}", {"authorization": f"Bearer {KEY}"}),
        (f"/v1/batches?limit={SECRET}", {"authorization": f"Bearer {KEY}"}),
        (f"/v1/nothing?{SECRET}", {"authorization": f"Bearer {KEY}"}),
    ],
)
async def test_log_of_other_refusals_has_neither_keys_nor_values(
    start_server: StartServer, log_entries: list[EventDict], path: str, headers: dict[str, str]
) -> None:
    server = await start_server(api_keys=KEY, allowed_hosts="example.org")
    assert 400 <= (await server.http.get(path, headers=headers)).status_code < 500
    (entry,) = select_refusals(log_entries)
    assert SECRET not in str(entry)
    assert KEY not in str(log_entries)


async def test_refusals_are_counted_by_code(start_server: StartServer) -> None:
    server = await start_server(api_keys=KEY)
    server.http.headers["authorization"] = f"Bearer {KEY}"
    await server.chat(model="other")
    for _ in range(2):
        await server.chat(temperature=9)
    await server.http.get("/v1/nothing")
    await server.http.get("/v1/batches?limit=many")
    await server.http.get("/v1/models", headers={"authorization": "Bearer wrong"})
    server.engine.failure = ZeroDivisionError()
    await server.chat()
    values = await read_metrics(server)
    assert {name: value for name, value in values.items() if name.startswith("error_responses_total")} == {
        'error_responses_total{code="model_not_found",status="404"}': 1,
        'error_responses_total{code="invalid_request_error",status="400"}': 3,
        'error_responses_total{code="invalid_request_error",status="404"}': 1,
        'error_responses_total{code="invalid_api_key",status="401"}': 1,
        'error_responses_total{code="internal_error",status="500"}': 1,
    }


@pytest.mark.parametrize("is_batch", [False, True])
async def test_refusals_after_the_start_are_counted_and_logged(
    server: FakeServer, log_entries: list[EventDict], is_batch: bool
) -> None:
    server.engine.failure, server.engine.fails_after = BadRequest(f"'{SECRET}' fails.", code="late"), 2
    if is_batch:
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat_request()}
        file = await server.openai.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = await server.openai.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while (await server.openai.batches.retrieve(batch.id)).status not in ("completed", "failed"):
            pass
    else:
        assert (await server.chat(stream=True)).status_code == 200
    (entry,) = select_refusals(log_entries)
    assert entry["event"] == ("batch_line_refused" if is_batch else "stream_refused")
    assert (entry["code"], entry["message"]) == ("late", "'...' fails.")
    assert (await read_metrics(server))['error_responses_total{code="late",status="400"}'] == 1


async def test_health_checks_during_loading_are_neither_logged_nor_counted(
    start_server: StartServer, log_entries: list[EventDict]
) -> None:
    engine = FakeEngine()
    engine.can_start.clear()
    server = await start_server(engine, wait_until_started=False)
    for path in HEALTH_PATHS:
        await server.http.get(path)
    assert select_refusals(log_entries) == []
    assert not any(name.startswith("error_responses_total") for name in await read_metrics(server))
    engine.can_start.set()


async def test_labels_of_codes_are_bounded(server: FakeServer) -> None:
    page_metrics = server.app.state.service.metrics
    for number in range(2 * metrics.MAX_CODE_LABELS):
        page_metrics.count_error(400, f"code-{number}")
    names = [name for name in await read_metrics(server) if name.startswith("error_responses_total")]
    assert len(names) == metrics.MAX_CODE_LABELS + 1
    assert 'error_responses_total{code="other",status="400"}' in names


def test_line_of_a_refusal_is_one_line_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(refusals, "log", structlog.get_logger())  # it keeps the configuration of its first use
    configure_logging()
    try:
        error = BadRequest("a\nb\x1b[2J" + "x" * 10_000, param="c\n" + "y" * 10_000)
        report_error(error, build_error_response(error), None)
    finally:
        structlog.reset_defaults()
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert len(entry["param"]) == MAX_LOGGED_PARAM + 1  # the escaped line break has two characters
    assert len(line) < 1000


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("The model's context is full.", "The model's context is full."),
        ("Unknown strategy 'a'. Known: b.", "Unknown strategy '...'. Known: b."),
        ("Unknown 'a' b' c 'd'. Known: e.", "Unknown '...'. Known: e."),
        ('The Host header names "it\'s".', "The Host header names '...'."),
        ("Unknown 'a", "Unknown '...'"),
    ],
)
def test_quoted_text_is_omitted(message: str, shown: str) -> None:
    error = BadRequest(message)
    assert hide_content(error, build_error_response(error).body.error) == shown


@pytest.mark.parametrize(("end", "shown"), [("'.", "Unknown '...'."), ("x" * 5000, "Unknown '...'")])
def test_millions_of_quotation_marks_take_no_time(end: str, shown: str) -> None:
    error = BadRequest("Unknown '" + "' '" * 1_000_000 + end)
    detail = build_error_response(error).body.error
    started_at = time.thread_time()
    assert hide_content(error, detail) == shown
    assert time.thread_time() - started_at < 0.05


@pytest.mark.parametrize(
    ("probability", "action", "failed"),
    [(0.89, None, True), (0.9, None, False), (0.1, "kept", False), (0.95, "replaced", True), (0.1, "dropped", True)],
)
def test_claim_has_failed_if_verify_acts_or_a_check_does_not_confirm_it(
    probability: float, action: ClaimAction | None, failed: bool
) -> None:
    claim = ClaimEntry(text="cat", start=0, end=3, question="?", probability=probability, action=action)
    assert metrics.has_failed(claim) == failed


def test_text_of_a_library_is_omitted() -> None:
    error = BadRequest(f"The processor fails: {SECRET}")
    error.__cause__ = ValueError(SECRET)
    assert hide_content(error, build_error_response(error).body.error) == "The processor fails: '...'"


async def test_changed_steps_and_claims_are_counted(start_server: StartServer) -> None:
    engine = FakeEngine(("A ", "cat ", "and ", "a ", "dog."), yes={"dog": 0.2})
    server = await start_server(engine)
    answer = await server.chat(model="tiny:blind", messages=image_messages(), decoding={"check": True})
    claims = answer.json()["onlyseen"]["claims"]
    assert len(claims) == 2
    await server.chat(model="tiny:blind", messages=image_messages())
    values = await read_metrics(server)
    label = '{strategy="blind"}'
    assert values[f"changed_steps_total{label}"] == 2
    assert values[f"claims_checked_total{label}"] == 2
    assert values[f"claims_failed_total{label}"] == 1
    assert Verify().threshold == metrics.CONFIRMED
