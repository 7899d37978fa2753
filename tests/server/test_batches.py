"""/v1/files and /v1/batches, as the openai package's client sees them, and what is left after a restart."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types import Batch
from structlog.typing import EventDict

from decoding.errors import EngineFailed, Overloaded
from server.batch import lines, runner
from server.batch.store import Store
from tests.server.conftest import Serve, Served, asked, seeing
from tests.server.fakes import FakeEngine

CHAT = "/v1/chat/completions"


def line(number: int, url: str = CHAT, **fields: Any) -> str:
    body = {"model": "tiny", "messages": seeing()} if url == CHAT else {"model": "tiny"}
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body | fields})


async def sent(served: Served, *said: str, endpoint: Any = CHAT) -> Batch:
    content = "\n".join(said).encode()
    file = await served.openai.files.create(file=("questions.jsonl", content), purpose="batch")
    return await served.openai.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


async def ended(served: Served, batch: Batch, *status: str) -> Batch:
    async with asyncio.timeout(60):  # against a hang: nothing here is timed
        while batch.status not in (status or ("completed", "failed", "cancelled", "expired")):
            await asyncio.sleep(0.01)
            batch = await served.openai.batches.retrieve(batch.id)
    return batch


async def outcomes(served: Served, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    content = (await served.openai.files.content(file_id)).content
    told = [json.loads(text) for text in content.splitlines()]
    return {each["custom_id"]: each["response"] for each in told}


async def test_every_line_is_answered(served: Served) -> None:
    batch = await ended(served, await sent(served, line(1), line(2), line(3, temperature=7), line(4, stream=True)))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (4, 2, 2)
    answers = await outcomes(served, batch.output_file_id)
    assert set(answers) == {"line-1", "line-2"}
    assert answers["line-1"]["status_code"] == 200
    assert answers["line-1"]["body"]["choices"][0]["message"]["content"] == "A cat on a mat."
    assert answers["line-1"]["body"]["onlyseen"]["strategy"] == "plain"
    errors = await outcomes(served, batch.error_file_id)
    assert [(errors[name]["status_code"], errors[name]["body"]["error"]["param"]) for name in sorted(errors)] == [
        (400, "temperature"),
        (400, "stream"),
    ]


@pytest.mark.parametrize(("url", "fields"), [("/v1/completions", {"prompt": "a"}), ("/v1/responses", {"input": "a"})])
async def test_other_endpoints(served: Served, url: str, fields: dict[str, Any]) -> None:
    batch = await ended(served, await sent(served, line(1, url, **fields), endpoint=url))
    answers = await outcomes(served, batch.output_file_id)
    assert answers["line-1"]["body"]["object"] in ("text_completion", "response")


@pytest.mark.parametrize(
    ("said", "code", "number"),
    [
        (["{"], "invalid_line", 1),
        ([line(1), "[]"], "invalid_line", 2),
        ([line(1), line(1)], "duplicate_id", 2),
        ([line(1, "/v1/responses", input="a")], "mismatched_endpoint", 1),
        ([line(1).replace("POST", "GET")], "invalid_line", 1),
        ([" "], "empty_file", None),
    ],
)
async def test_files_that_are_no_batch(served: Served, said: list[str], code: str, number: int | None) -> None:
    batch = await ended(served, await sent(served, *said))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert not served.engine.asks


async def test_a_full_queue_only_delays(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PAUSE", 0.01)
    served = await serve(FakeEngine(failure=Overloaded("Full.")))
    batch = await sent(served, line(1))
    await asyncio.sleep(0.1)
    served.engine.failure = None
    assert await outcomes(served, (await ended(served, batch)).output_file_id)


async def test_a_failure_is_one_lines_own(serve: Serve) -> None:
    served = await serve(FakeEngine(failure=EngineFailed("Broke.")))
    batch = await ended(served, await sent(served, line(1)))
    assert (await outcomes(served, batch.error_file_id))["line-1"]["status_code"] == 500


async def test_cancelled(serve: Serve) -> None:
    served = await serve(FakeEngine(pause=0.02), batch_requests=1)
    batch = await ended(served, await sent(served, *map(line, range(100))), "in_progress")
    await asyncio.sleep(0.3)
    assert (await served.openai.batches.cancel(batch.id)).status == "cancelling"
    batch = await ended(served, batch)
    assert batch.status == "cancelled"
    assert 0 < len(await outcomes(served, batch.output_file_id)) < 100
    with pytest.raises(BadRequestError):
        await served.openai.batches.cancel(batch.id)


async def test_it_goes_on_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    first = await serve(FakeEngine(pause=0.1), data_dir=tmp_path, batch_requests=2)
    batch = await ended(first, await sent(first, *map(line, range(20))), "in_progress")
    answers = tmp_path / runner.outcomes_of(batch)[0]
    async with asyncio.timeout(60):
        while len(lines.done(answers)) < 4:  # noqa: ASYNC110 - nothing tells when it is reached
            await asyncio.sleep(0.01)
    await first.app.state.service.batches.close()
    kept = len(lines.done(answers))
    with answers.open("ab") as file:
        file.write(b'{"custom_id": "line-19", "respon')  # what a kill leaves
    again = await serve(data_dir=tmp_path)
    batch = await ended(again, batch)
    assert batch.status == "completed"
    assert set(await outcomes(again, batch.output_file_id)) == {f"line-{number}" for number in range(20)}
    assert len(again.engine.asks) == 20 - kept


async def test_a_death_at_its_end_loses_no_answer(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    first = await serve(data_dir=tmp_path)
    change = Store.change

    async def dies(store: Store, *names: str, **fields: Any) -> Batch | None:
        if fields.get("status") == "completed":
            raise runner.Stopped
        return await change(store, *names, **fields)

    with monkeypatch.context() as death:
        death.setattr(Store, "change", dies)
        batch = await sent(first, line(1), line(2, temperature=7))
        async with asyncio.timeout(60):
            while not any("waits for the next start" in told["event"] for told in logged):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    again = await serve(data_dir=tmp_path)
    batch = await ended(again, batch)
    assert (batch.status, list(await outcomes(again, batch.output_file_id))) == ("completed", ["line-1"])
    assert list(await outcomes(again, batch.error_file_id)) == ["line-2"]
    assert not again.engine.asks


async def test_lines_are_read_beside_the_event_loop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[int] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            readers.append(threading.get_ident())
            return function(*values)

        return call

    for name in ("line_of", "asked_by"):
        monkeypatch.setattr(runner, name, noted(getattr(runner, name)))
    await ended(served, await sent(served, line(1), line(2)))
    assert len(readers) == 4
    assert threading.get_ident() not in readers


async def test_counts_that_were_not_written_any_more_are_made_up_for(serve: Serve, tmp_path: Path) -> None:
    first = await serve(FakeEngine(pause=0.05), data_dir=tmp_path)
    batch = await ended(first, await sent(first, line(1)), "in_progress")
    await first.app.state.service.batches.close()
    (tmp_path / runner.outcomes_of(batch)[0]).write_text('{"custom_id": "line-1", "response": {}}\n')
    assert (await ended(await serve(data_dir=tmp_path), batch)).status == "completed"


async def test_a_cancel_beside_the_end_loses_no_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await serve(FakeEngine(pause=0.01))
    batch = await sent(served, *map(line, range(20)))
    async with asyncio.timeout(60):
        while (batch.request_counts.completed if batch.request_counts else 0) == 0:
            batch = await served.openai.batches.retrieve(batch.id)
    look = Store.batch

    async def slowly(store: Store, owner: str, identity: str) -> Batch:
        seen = await look(store, owner, identity)
        while (await look(store, owner, identity)).status == "in_progress":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return seen

    with monkeypatch.context() as delay, suppress(BadRequestError):
        delay.setattr(Store, "batch", slowly)
        await served.openai.batches.cancel(batch.id)
    batch = await ended(served, batch)
    assert batch.request_counts is not None
    assert len(await outcomes(served, batch.output_file_id)) == batch.request_counts.completed > 0


async def test_an_engine_that_dies_leaves_the_rest_for_the_next_start(serve: Serve) -> None:
    served = await serve(FakeEngine(pause=0.01), batch_requests=1)
    batch = await ended(served, await sent(served, *map(line, range(50))), "in_progress")
    served.engine.alive = False
    await asyncio.sleep(0.3)
    assert (await served.openai.batches.retrieve(batch.id)).status == "in_progress"


async def test_files_can_be_listed_fetched_and_deleted(served: Served) -> None:
    made = [await served.openai.files.create(file=(f"{n}.jsonl", b"{}"), purpose="batch") for n in range(3)]
    assert [file.id async for file in served.openai.files.list(limit=2)] == [file.id for file in reversed(made)]
    assert [file.id async for file in served.openai.files.list(limit=2, order="asc")] == [file.id for file in made]
    assert (await served.openai.files.retrieve(made[0].id)).bytes == 2
    assert (await served.openai.files.delete(made[0].id)).deleted
    with pytest.raises(NotFoundError):
        await served.openai.files.content(made[0].id)


async def test_batches_can_be_listed(served: Served) -> None:
    made = [await sent(served, line(1)) for _ in range(3)]
    assert [batch.id async for batch in served.openai.batches.list(limit=2)] == [batch.id for batch in reversed(made)]


async def test_what_a_key_sent_is_its_own(serve: Serve) -> None:
    served = await serve(api_keys="one,other")

    def client(key: str) -> AsyncOpenAI:
        return served.openai.with_options(api_key=key)

    file = await client("one").files.create(file=("a.jsonl", line(1).encode()), purpose="batch")
    with pytest.raises(NotFoundError):
        await client("other").files.retrieve(file.id)
    with pytest.raises(NotFoundError):
        await client("other").batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert not (await client("other").files.list()).data
    assert (await served.http.post("/v1/files")).status_code == 401


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-1"}, 404, "input_file_id"),
        ({"input_file_id": "../../etc/passwd"}, 404, "input_file_id"),
        ({"input_file_id": 1}, 400, "input_file_id"),
        ({"output_expires_after": {}}, 400, "output_expires_after"),
    ],
)
async def test_bad_batches(served: Served, fields: dict[str, Any], status: int, param: str) -> None:
    body = {"input_file_id": "file-0", "endpoint": CHAT, "completion_window": "24h"} | fields
    response = await served.http.post("/v1/batches", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("form", "status", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": b""}}, 400, "file"),
        ({"data": {"purpose": "vision"}, "files": {"file": b"x"}}, 400, "purpose"),
        ({"data": {"purpose": "batch", "more": "x"}, "files": {"file": b"x"}}, 400, "more"),
        ({"json": asked()}, 415, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, None),
    ],
)
async def test_bad_uploads(served: Served, form: dict[str, Any], status: int, param: str | None) -> None:
    response = await served.http.post("/v1/files", **form)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_storage_is_bounded(serve: Serve) -> None:
    served = await serve(max_file_mb=2, max_data_mb=3)
    await served.openai.files.create(file=("a", b"x" * 1_900_000), purpose="batch")
    with pytest.raises(BadRequestError, match="full"):
        await served.openai.files.create(file=("a", b"x" * 1_900_000), purpose="batch")
    files = {"file": b"x" * 2_100_000}
    assert (await served.http.post("/v1/files", files=files, data={"purpose": "batch"})).status_code == 413


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1000", "after=" + "x" * 65])
async def test_bad_pages(served: Served, query: str) -> None:
    response = await served.http.get(f"/v1/batches?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, query.partition("=")[0])
