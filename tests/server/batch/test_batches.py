"""/v1/files and /v1/batches through the openai package's client, with restarts, failures and refusals."""

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
from openai.types import Batch, FileObject
from structlog.typing import EventDict

from decoding.errors import EngineFailed, Overloaded
from server.app import BATCH_PARSERS
from server.batch import line_workers
from server.batch.store import BatchStore, get_result_file_ids
from server.routes import chat_completions
from tests.server.batch.harness import CHAT, count_lines, create_batch, make_line, read_results, stop, wait_for_status
from tests.server.conftest import FakeServer, StartServer, chat_request, wait_until
from tests.server.fakes import FakeEngine


async def test_every_line_gets_a_result(server: FakeServer) -> None:
    batch = await wait_for_status(
        server,
        await create_batch(server, make_line(1), make_line(2), make_line(3, temperature=7), make_line(4, stream=True)),
    )
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (4, 2, 2)
    answers = await read_results(server, batch.output_file_id)
    assert set(answers) == {"line-1", "line-2"}
    assert answers["line-1"]["status_code"] == 200
    assert answers["line-1"]["body"]["choices"][0]["message"]["content"] == "A cat on a mat."
    assert answers["line-1"]["body"]["onlyseen"]["strategy"] == "plain"
    errors = await read_results(server, batch.error_file_id)
    assert [(errors[name]["status_code"], errors[name]["body"]["error"]["param"]) for name in sorted(errors)] == [
        (400, "temperature"),
        (400, "stream"),
    ]


async def test_line_with_a_check_has_claims(server: FakeServer) -> None:
    server.engine.words = ("There ", "is ", "a ", "cat.")
    batch = await wait_for_status(
        server,
        await create_batch(
            server, make_line(1, decoding={"check": True}), make_line(2, decoding={"check": {"debias": 2}})
        ),
    )
    answers, errors = [await read_results(server, file) for file in (batch.output_file_id, batch.error_file_id)]
    (claim,) = answers["line-1"]["body"]["onlyseen"]["claims"]
    assert (claim["text"], claim["start"], claim["end"]) == ("cat", 11, 14)
    assert errors["line-2"]["body"]["error"]["param"] == "decoding.check.debias"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (make_line(2, messages=[{"role": "user", "content": "x" * 1_000_000}]), "request_too_large"),
        (make_line(2, messages=[{"role": "user", "content": [0] * 100_000}]), "body_too_complex"),
    ],
)
async def test_line_has_the_bounds_of_a_body(start_server: StartServer, line: str, code: str) -> None:
    server = await start_server(max_body_mb=1)
    batch = await wait_for_status(server, await create_batch(server, make_line(1), line, make_line(3)))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.code, error.line) for error in batch.errors.data or []] == [(code, 2)]


@pytest.mark.parametrize(("url", "fields"), [("/v1/completions", {"prompt": "a"}), ("/v1/responses", {"input": "a"})])
async def test_batch_runs_on_other_endpoints(server: FakeServer, url: str, fields: dict[str, Any]) -> None:
    batch = await wait_for_status(server, await create_batch(server, make_line(1, url, **fields), endpoint=url))
    answers = await read_results(server, batch.output_file_id)
    assert answers["line-1"]["body"]["object"] in ("text_completion", "response")


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        (["{"], "invalid_line", 1),
        ([make_line(1), "[]"], "invalid_line", 2),
        ([make_line(1), make_line(1)], "duplicate_id", 2),
        ([make_line(1, "/v1/responses", input="a")], "mismatched_endpoint", 1),
        ([make_line(1).replace("POST", "GET")], "invalid_line", 1),
        ([" "], "empty_file", None),
    ],
)
async def test_invalid_file_fails_the_batch(
    server: FakeServer, lines: list[str], code: str, number: int | None
) -> None:
    batch = await wait_for_status(server, await create_batch(server, *lines))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert not server.engine.requests


async def test_full_queue_delays_a_line(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_workers, "RETRY_DELAY", 0.01)
    server = await start_server(FakeEngine(failure=Overloaded("Full.")))
    batch = await create_batch(server, make_line(1))
    await asyncio.sleep(0.1)
    server.engine.failure = None
    assert await read_results(server, (await wait_for_status(server, batch)).output_file_id)


async def test_engine_failure_fails_one_line(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(failure=EngineFailed("Broke.")))
    batch = await wait_for_status(server, await create_batch(server, make_line(1)))
    assert (await read_results(server, batch.error_file_id))["line-1"]["status_code"] == 500


async def test_cancelled_batch_keeps_its_answers(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(pause=0.02), batch_requests=1)
    batch = await wait_for_status(server, await create_batch(server, *map(make_line, range(100))), "in_progress")
    await asyncio.sleep(0.3)
    assert (await server.openai.batches.cancel(batch.id)).status == "cancelling"
    batch = await wait_for_status(server, batch)
    assert batch.status == "cancelled"
    assert 0 < len(await read_results(server, batch.output_file_id)) < 100
    with pytest.raises(BadRequestError):
        await server.openai.batches.cancel(batch.id)


async def test_batch_resumes_after_a_restart(start_server: StartServer, tmp_path: Path) -> None:
    first = await start_server(FakeEngine(pause=0.1), data_dir=tmp_path, batch_requests=2)
    batch = await wait_for_status(first, await create_batch(first, *map(make_line, range(20))), "in_progress")
    answers = tmp_path / get_result_file_ids(batch.id)[0]
    async with asyncio.timeout(60):
        while count_lines(answers) < 4:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    await stop(first)
    finished = count_lines(answers)
    with answers.open("ab") as file:
        file.write(b'{"custom_id": "line-19", "respon')  # an incomplete line, as a killed process leaves it
    restarted = await start_server(data_dir=tmp_path)
    batch = await wait_for_status(restarted, batch)
    assert batch.status == "completed"
    assert set(await read_results(restarted, batch.output_file_id)) == {f"line-{number}" for number in range(20)}
    assert len(restarted.engine.requests) == 20 - finished


@pytest.mark.parametrize(
    ("is_id_first", "status", "results"), [(True, "completed", 3), (False, "failed", 1)], ids=["id first", "id last"]
)
async def test_line_beyond_the_bound_of_a_restarted_server_has_an_error(
    start_server: StartServer, tmp_path: Path, is_id_first: bool, status: str, results: int
) -> None:
    first = await start_server(FakeEngine(pause=60), data_dir=tmp_path, batch_requests=1, max_body_mb=2)
    line = json.loads(make_line(1))
    large = json.dumps(line if is_id_first else {key: line[key] for key in ("method", "url", "body", "custom_id")})
    large = large.replace('"body": {', '"body": {' + " " * 1_500_000)
    batch = await create_batch(first, make_line(0), large, make_line(2))
    batch = await wait_for_status(first, batch, "in_progress")
    await wait_until(lambda: first.engine.running == 1)
    await stop(first)
    restarted = await start_server(data_dir=tmp_path, batch_requests=1, max_body_mb=1)
    batch = await wait_for_status(restarted, batch)
    assert batch.status == status
    stored = await read_results(restarted, batch.output_file_id) | await read_results(restarted, batch.error_file_id)
    assert len(stored) == results
    if is_id_first:
        error = stored["line-1"]
        assert (error["status_code"], error["body"]["error"]["code"]) == (413, "request_too_large")
    else:
        assert batch.errors is not None
        assert [(each.code, each.line) for each in batch.errors.data or []] == [("request_too_large", 2)]


async def test_crash_while_finishing_loses_no_answer(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_entries: list[EventDict]
) -> None:
    first = await start_server(data_dir=tmp_path)
    update_batch = BatchStore.update_batch

    async def crash(store: BatchStore, *names: str, **fields: Any) -> Batch | None:
        if fields.get("status") == "completed":
            raise line_workers.BatchInterrupted
        return await update_batch(store, *names, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStore, "update_batch", crash)
        batch = await create_batch(first, make_line(1), make_line(2, temperature=7))
        async with asyncio.timeout(60):
            while not any("batch_interrupted" in entry["event"] for entry in log_entries):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    await stop(first)
    restarted = await start_server(data_dir=tmp_path)
    batch = await wait_for_status(restarted, batch)
    assert (batch.status, list(await read_results(restarted, batch.output_file_id))) == ("completed", ["line-1"])
    assert list(await read_results(restarted, batch.error_file_id)) == ["line-2"]
    assert not restarted.engine.requests


async def test_lines_are_parsed_in_threads(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def record_thread(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*values)

        return call

    monkeypatch.setattr(line_workers, "parse_validated_line", record_thread(line_workers.parse_validated_line))
    monkeypatch.setitem(BATCH_PARSERS, CHAT, record_thread(chat_completions.parse_body))
    await wait_for_status(server, await create_batch(server, make_line(1), make_line(2)))
    assert len(threads) == 4
    assert threading.get_ident() not in threads


async def test_counts_missed_by_a_crash_are_recovered(start_server: StartServer, tmp_path: Path) -> None:
    first = await start_server(FakeEngine(pause=0.05), data_dir=tmp_path)
    batch = await wait_for_status(first, await create_batch(first, make_line(1)), "in_progress")
    await stop(first)
    (tmp_path / get_result_file_ids(batch.id)[0]).write_text('{"custom_id": "line-1", "response": {}}\n')
    assert (await wait_for_status(await start_server(data_dir=tmp_path), batch)).status == "completed"


async def test_cancel_during_the_last_update_loses_no_answer(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(FakeEngine(pause=0.01))
    batch = await create_batch(server, *map(make_line, range(20)))
    async with asyncio.timeout(60):
        while (batch.request_counts.completed if batch.request_counts else 0) == 0:
            batch = await server.openai.batches.retrieve(batch.id)
    get_batch = BatchStore.get_batch

    async def get_slowly(store: BatchStore, owner: str, batch_id: str) -> Batch:
        batch = await get_batch(store, owner, batch_id)
        while (await get_batch(store, owner, batch_id)).status == "in_progress":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return batch

    with monkeypatch.context() as patch, suppress(BadRequestError):
        patch.setattr(BatchStore, "get_batch", get_slowly)
        await server.openai.batches.cancel(batch.id)
    batch = await wait_for_status(server, batch)
    assert batch.request_counts is not None
    assert len(await read_results(server, batch.output_file_id)) == batch.request_counts.completed > 0


async def test_dead_engine_leaves_the_batch_in_progress(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(pause=0.01), batch_requests=1)
    batch = await wait_for_status(server, await create_batch(server, *map(make_line, range(50))), "in_progress")
    server.engine.is_alive = False
    await asyncio.sleep(0.3)
    assert (await server.openai.batches.retrieve(batch.id)).status == "in_progress"


async def test_files_are_listed_retrieved_and_deleted(server: FakeServer) -> None:
    created = [await server.openai.files.create(file=(f"{n}.jsonl", b"{}"), purpose="batch") for n in range(3)]
    assert [file.id async for file in server.openai.files.list(limit=2)] == [file.id for file in reversed(created)]
    assert [file.id async for file in server.openai.files.list(limit=2, order="asc")] == [file.id for file in created]
    assert (await server.openai.files.retrieve(created[0].id)).bytes == 2
    assert (await server.openai.files.delete(created[0].id)).deleted
    with pytest.raises(NotFoundError):
        await server.openai.files.content(created[0].id)


async def test_pages_have_the_fields_of_openai(server: FakeServer) -> None:
    files = [await server.openai.files.create(file=("a", b"{}"), purpose="batch") for _ in range(3)]
    page = (await server.http.get(f"/v1/files?limit=1&after={files[2].id}")).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (files[1].id, files[1].id, True)
    assert page["data"][0]["status_details"] is None
    page = (await server.http.get(f"/v1/files?order=asc&after={files[1].id}")).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == ([files[2].id], False)
    for query in ("after=file-0", "purpose=batch_output"):
        page = (await server.http.get(f"/v1/files?{query}")).json()
        assert (page["data"], page["first_id"], page["has_more"]) == ([], None, False)


async def test_listing_parses_one_page_in_a_thread(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = await wait_for_status(server, await create_batch(server, make_line(1)))
    for _ in range(4):
        await server.openai.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    await asyncio.gather(*(wait_for_status(server, batch) for batch in (await server.openai.batches.list()).data))
    for path, item in (("files", FileObject), ("batches", Batch)):
        threads: list[int] = []
        parse = item.model_validate_json

        def record(document: str, parse: Any = parse, threads: list[int] = threads) -> Any:
            threads.append(threading.get_ident())
            return parse(document)

        monkeypatch.setattr(item, "model_validate_json", record)
        assert len((await server.http.get(f"/v1/{path}?limit=2")).json()["data"]) == 2
        assert len(threads) == 2
        assert threading.get_ident() not in threads


async def test_keys_have_their_batches_run_side_by_side(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(pause=0.01), api_keys="one,other", batch_requests=2)

    async def create(key: str, lines: int) -> Batch:
        client = server.openai.with_options(api_key=key)
        content = "\n".join(map(make_line, range(lines))).encode()
        file = await client.files.create(file=("a.jsonl", content), purpose="batch")
        return await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")

    long = await create("one", 200)
    short = await create("other", 3)
    async with asyncio.timeout(60):
        while (await server.openai.with_options(api_key="other").batches.retrieve(short.id)).status != "completed":
            assert server.engine.running <= 2
            await asyncio.sleep(0.01)
    assert (await server.openai.with_options(api_key="one").batches.retrieve(long.id)).status == "in_progress"


async def test_batches_are_listed(server: FakeServer) -> None:
    created = [await create_batch(server, make_line(1)) for _ in range(3)]
    assert [batch.id async for batch in server.openai.batches.list(limit=2)] == [
        batch.id for batch in reversed(created)
    ]


async def test_api_key_sees_only_its_own_files(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,other")

    def client(key: str) -> AsyncOpenAI:
        return server.openai.with_options(api_key=key)

    file = await client("one").files.create(file=("a.jsonl", make_line(1).encode()), purpose="batch")
    with pytest.raises(NotFoundError):
        await client("other").files.retrieve(file.id)
    with pytest.raises(NotFoundError):
        await client("other").batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert not (await client("other").files.list()).data
    assert (await server.http.post("/v1/files")).status_code == 401


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
async def test_invalid_batch_request_is_refused(
    server: FakeServer, fields: dict[str, Any], status: int, param: str
) -> None:
    body = {"input_file_id": "file-0", "endpoint": CHAT, "completion_window": "24h"} | fields
    response = await server.http.post("/v1/batches", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("form", "status", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": b""}}, 400, "file"),
        ({"data": {"purpose": "vision"}, "files": {"file": b"x"}}, 400, "purpose"),
        ({"data": {"purpose": "batch", "more": "x"}, "files": {"file": b"x"}}, 400, "more"),
        ({"json": chat_request()}, 415, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, None),
    ],
)
async def test_invalid_upload_is_refused(
    server: FakeServer, form: dict[str, Any], status: int, param: str | None
) -> None:
    response = await server.http.post("/v1/files", **form)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_storage_quota_holds(start_server: StartServer) -> None:
    server = await start_server(max_file_mb=2, max_data_mb=3)
    await server.openai.files.create(file=("a", b"x" * 1_900_000), purpose="batch")
    with pytest.raises(BadRequestError, match="full"):
        await server.openai.files.create(file=("a", b"x" * 1_900_000), purpose="batch")
    files = {"file": b"x" * 2_100_000}
    assert (await server.http.post("/v1/files", files=files, data={"purpose": "batch"})).status_code == 413


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1000", "after=" + "x" * 65])
async def test_invalid_page_parameters_are_refused(server: FakeServer, query: str) -> None:
    response = await server.http.get(f"/v1/batches?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, query.partition("=")[0])
