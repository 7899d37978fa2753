"""Schemas that take much time or memory, and the turns of API keys."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from structlog.typing import EventDict

from decoding.sampling_params import Grammar
from server.batch import line_workers
from server.serving import schema_compiler
from server.serving.schema_compiler import GRAMMAR_BYTES, GrammarCheckFailed, GrammarCheckProcess, SchemaCompiler
from tests.hostile_schemas import intersect_patterns
from tests.server.batch.harness import create_batch, make_line, read_results, wait_for_status
from tests.server.conftest import FakeServer, StartServer, chat_request, wait_until
from tests.server.fakes import FakeEngine

KEYS = {"api_keys": "one,two"}


def wrap(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "text", "schema": schema}}}


HOSTILE = wrap(intersect_patterns(40))
SMALL = wrap({"type": "object"})


async def chat(server: FakeServer, key: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return await server.http.post("/v1/chat/completions", json=chat_request(**fields), headers=headers)


def get_compiler(server: FakeServer) -> SchemaCompiler:
    compiler: SchemaCompiler = server.app.state.service.schema_compiler
    return compiler


def get_code(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, (response.json().get("error") or {}).get("code")


@pytest.fixture
def low_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse the hostile schema after a quarter of a second of a core."""
    monkeypatch.setattr(schema_compiler, "CHECK_MEGABYTES", 60)


@pytest.mark.parametrize("count", [15, 40])
async def test_schema_takes_no_memory_of_the_server(count: int, server: FakeServer) -> None:
    process, peak = psutil.Process(), 0
    before = process.memory_info().rss
    call = asyncio.create_task(server.chat(**wrap(intersect_patterns(count))))
    while not call.done():
        peak = max(peak, process.memory_info().rss - before)
        await asyncio.sleep(0.01)
    assert get_code(await call) == (400, "invalid_schema")
    assert "too large" in (await call).json()["error"]["message"]
    assert peak < 30_000_000
    assert get_code(await server.chat(**SMALL)) == (200, None)


async def test_schema_that_takes_long_is_refused(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_compiler, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(schema_compiler, "CHECK_MEGABYTES", 4000)
    response = await server.chat(**HOSTILE)
    error = response.json()["error"]
    assert get_code(response) == (400, "invalid_schema")
    assert (error["param"], error["message"]) == (
        "response_format.json_schema.schema",
        "The schema takes too long to compile.",
    )


@pytest.mark.usefixtures("low_memory")
async def test_every_route_refuses_the_schema(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_workers, "RETRY_DELAY", 0.01)
    text = {"format": {"type": "json_schema", "name": "text", "schema": intersect_patterns(40)}}
    response = await server.http.post("/v1/responses", json={"model": "tiny", "input": "a", "text": text})
    assert get_code(response) == (400, "invalid_schema")
    batch = await create_batch(server, make_line(1, **HOSTILE), make_line(2, **SMALL))
    batch = await wait_for_status(server, batch)
    assert (await read_results(server, batch.error_file_id))["line-1"]["body"]["error"]["code"] == "invalid_schema"
    assert list(await read_results(server, batch.output_file_id)) == ["line-2"]


@pytest.mark.usefixtures("low_memory")
async def test_schemas_of_a_key_do_not_delay_those_of_others(start_server: StartServer) -> None:
    server = await start_server(**KEYS)
    schemas = [wrap(intersect_patterns(count)) for count in range(40, 46)]
    hostile = [asyncio.create_task(chat(server, "one", **schema)) for schema in schemas]
    await wait_until(lambda: len(get_compiler(server)._idle_processes) == 1)
    assert get_code(await chat(server, "two", **SMALL)) == (200, None)
    assert sum(call.done() for call in hostile) < 6
    assert {get_code(response) for response in await asyncio.gather(*hostile)} == {(400, "invalid_schema")}


async def test_long_wait_for_a_turn_can_be_retried(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_compiler, "TURN_TIMEOUT", 0.05)
    turns = get_compiler(server)._turns
    held = await turns.acquire("", 2)
    response = await server.chat(**SMALL)
    assert get_code(response) == (429, "too_many_schemas")
    assert response.headers["retry-after"] == "1"
    turns.release("", held)
    assert get_code(await server.chat(**SMALL)) == (200, None)


async def test_time_of_a_check_does_not_include_the_wait(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_compiler, "CHECK_SECONDS", 0.3)
    turns = get_compiler(server)._turns
    held = await turns.acquire("", 2)
    call = asyncio.create_task(server.chat(**SMALL))
    await asyncio.sleep(0.5)
    turns.release("", held)
    assert get_code(await call) == (200, None)


async def test_running_check_does_not_delay_the_shutdown() -> None:
    compiler = SchemaCompiler(1_000_000, None)
    process = compiler._processes[0]
    check = asyncio.create_task(process.check(json.dumps(intersect_patterns(40))))
    await wait_until(lambda: list_forks(process) != [])
    program, forks = process._process, list_forks(process)
    assert program is not None
    start = time.perf_counter()
    await compiler.close()
    with pytest.raises(GrammarCheckFailed):
        await check
    assert time.perf_counter() - start < 2
    assert program.returncode == 0
    assert not any(psutil.pid_exists(pid) for pid in forks)  # also none that nobody waits for


async def test_stopped_process_is_killed_with_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_compiler, "TERMINATION_TIMEOUT", 0.1)
    process = GrammarCheckProcess()
    check = asyncio.create_task(process.check(json.dumps(intersect_patterns(40))))
    await wait_until(lambda: list_forks(process) != [])
    program, forks = process._process, list_forks(process)
    assert program is not None
    os.kill(program.pid, signal.SIGSTOP)
    check.cancel()
    await asyncio.gather(check, return_exceptions=True)
    assert program.returncode == -signal.SIGKILL
    await wait_until(lambda: not any(is_running(pid) for pid in forks))


def list_forks(process: GrammarCheckProcess) -> list[int]:
    if process._process is None:
        return []
    pid = process._process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_request_that_leaves_ends_its_check(server: FakeServer) -> None:
    call = asyncio.create_task(server.chat(**HOSTILE))
    await wait_until(lambda: len(get_compiler(server)._idle_processes) == 1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await wait_until(lambda: len(get_compiler(server)._idle_processes) == 2)
    assert get_code(await server.chat(**SMALL)) == (200, None)


async def test_process_that_has_ended_is_replaced(server: FakeServer, log_entries: list[EventDict]) -> None:
    assert get_code(await server.chat(**SMALL)) == (200, None)
    (program,) = [each._process for each in get_compiler(server)._processes if each._process is not None]
    os.kill(program.pid, signal.SIGKILL)
    await program.wait()
    assert get_code(await server.chat(**wrap({"type": "string"}))) == (200, None)
    assert not [entry for entry in log_entries if entry["event"] == "schema_check_failed"]


async def test_process_that_does_not_start_is_no_fault_of_the_schema(
    server: FakeServer, log_entries: list[EventDict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(schema_compiler, "CHECK_PROGRAM", program)
        assert get_code(await server.chat(**SMALL)) == (429, "too_many_schemas")
    assert [entry["event"] for entry in log_entries if entry["log_level"] == "error"] == ["schema_check_failed"]
    assert get_code(await server.chat(**SMALL)) == (200, None)


async def test_result_of_a_check_is_kept_for_its_key(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, checked = await start_server(**KEYS), list[str]()

    async def check(_: GrammarCheckProcess, text: str) -> dict[str, Any]:
        checked.append(text)
        return {"reason": "", "timed_out": False, "num_bytes": 0}

    monkeypatch.setattr(GrammarCheckProcess, "check", check)
    for key in ("one", "one", "two", "one"):
        assert get_code(await chat(server, key, **SMALL)) == (200, None)
    assert len(checked) == 2
    monkeypatch.setattr(schema_compiler, "MAX_CHECKED", 2)
    for schema in ({"type": "string"}, {"type": "number"}, {"type": "string"}, {"type": "object"}):
        await chat(server, "one", **wrap(schema))
    assert len(checked) == 5


@pytest.mark.parametrize(("reason", "status"), [("", 200), ("it is too large", 400)])
@pytest.mark.parametrize("settings", [KEYS, {}])
async def test_requests_with_one_schema_wait_for_one_check(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], reason: str, status: int
) -> None:
    server, checked = await start_server(**settings), list[str]()
    pending = get_compiler(server)._pending_checks

    async def check(_: GrammarCheckProcess, text: str) -> dict[str, Any]:
        checked.append(text)
        await wait_until(lambda: [each.num_requests for each in pending.values()] == [16])
        return {"reason": reason, "timed_out": False, "num_bytes": 0}

    monkeypatch.setattr(GrammarCheckProcess, "check", check)
    monkeypatch.setattr(schema_compiler, "TURN_TIMEOUT", 1.0)
    responses = await asyncio.gather(*(chat(server, "one", max_tokens=1, **SMALL) for _ in range(16)))
    assert [response.status_code for response in responses] == [status] * 16
    assert len(checked) == 1
    assert not pending


async def test_shared_check_goes_on_without_its_first_request(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, is_over = list[str](), asyncio.Event()

    async def check(_: GrammarCheckProcess, text: str) -> dict[str, Any]:
        checked.append(text)
        await is_over.wait()
        return {"reason": "", "timed_out": False, "num_bytes": 0}

    monkeypatch.setattr(GrammarCheckProcess, "check", check)
    pending = get_compiler(server)._pending_checks
    first, second = (asyncio.create_task(server.chat(max_tokens=1, **SMALL)) for _ in range(2))
    await wait_until(lambda: [each.num_requests for each in pending.values()] == [2] and len(checked) == 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await wait_until(lambda: [each.num_requests for each in pending.values()] == [1])
    is_over.set()
    assert get_code(await second) == (200, None)
    assert len(checked) == 1


async def test_second_cancellation_leaves_no_zombie() -> None:
    process = GrammarCheckProcess()
    check = asyncio.create_task(process.check(json.dumps(intersect_patterns(40))))
    await wait_until(lambda: list_forks(process) != [])
    program = process._process
    assert program is not None
    for _ in range(2):
        check.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(check, return_exceptions=True)
    assert program.returncode == 0
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(program.pid)


async def test_requests_wait_for_the_memory_of_their_schemas(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    server = await start_server(engine, grammar_memory_mb=GRAMMAR_BYTES // 1_000_000)
    call = asyncio.create_task(server.chat(**SMALL))
    await wait_until(lambda: engine.running == 1)
    waiting = asyncio.create_task(server.chat(**SMALL, max_tokens=1))
    await asyncio.sleep(0.2)
    assert (engine.running, len(engine.compiled_grammars)) == (1, 1)
    assert get_code(await server.chat(max_tokens=1)) == (200, None)  # a request without a schema does not wait
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert get_code(await waiting) == (200, None)


async def test_compilation_in_the_engine_keeps_its_turn_to_its_end(server: FakeServer) -> None:
    """A thread of the engine goes on when the client has left."""
    is_over = asyncio.Event()

    async def compile_grammar(_: Grammar) -> None:
        await is_over.wait()

    server.engine.compile_grammar = compile_grammar  # type: ignore[method-assign]
    turns = get_compiler(server)._turns
    call = asyncio.create_task(server.chat(**SMALL))
    await wait_until(lambda: len(get_compiler(server)._sizes) == 1 and not turns.is_free("", 2))
    call.cancel()
    await asyncio.sleep(0.05)
    assert not turns.is_free("", 2)
    is_over.set()
    await asyncio.gather(call, return_exceptions=True)
    await wait_until(lambda: turns.is_free("", 2))
