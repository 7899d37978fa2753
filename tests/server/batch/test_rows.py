"""Lines of batches share the engine's rows with requests of clients."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from typing import Any

import pytest

from server.batch import jsonl, line_workers
from tests.server.batch.harness import create_batch, make_line, wait_for_status
from tests.server.conftest import FakeServer, StartServer, wait_until
from tests.server.fakes import FakeEngine


async def start_batch(server: FakeServer, engine: FakeEngine, rows: int, **fields: int) -> list[int]:
    """Start a batch of eight lines and wait until it fills its rows. Return the list of the rows that run over time."""
    await create_batch(server, *(make_line(number, **fields) for number in range(8)))
    await wait_until(lambda: engine.running == rows)
    running = []
    for _ in range(10):
        await asyncio.sleep(0.01)
        running.append(engine.running)
    return running


@pytest.mark.parametrize("fields", [{}, {"n": 3}])
async def test_batch_leaves_rows_to_requests(start_server: StartServer, fields: dict[str, int]) -> None:
    engine = FakeEngine(words=["word "] * 100, pause=0.01)
    server = await start_server(engine, max_rows=4)
    assert set(await start_batch(server, engine, 3, **fields)) == {3}
    assert (await server.chat(max_tokens=1)).status_code == 200


async def test_choices_of_a_line_take_turns_within_the_rows_of_batches(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 10, pause=0.01)
    server = await start_server(engine, max_rows=8)
    batch, most = await create_batch(server, make_line(1, n=8)), 0
    while (batch := await server.openai.batches.retrieve(batch.id)).status != "completed":
        most = max(most, engine.running)
        await asyncio.sleep(0.001)
    assert most == 6


async def test_batch_has_the_share_of_its_key(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 100, pause=0.01)
    server = await start_server(engine, max_rows=4, api_keys="one,two", key_share=0.25)
    server.openai.api_key, server.http.headers["authorization"] = "one", "Bearer two"
    assert set(await start_batch(server, engine, 1)) == {1}
    assert (await server.chat(max_tokens=1)).status_code == 200


async def test_lines_in_memory_are_bounded_over_all_keys(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, numbers, most = set[int](), itertools.count(), 0
    parse = jsonl.parse_validated_line

    def count(*arguments: Any) -> Any:
        nonlocal most
        line = parse(*arguments)
        in_memory.add(number := next(numbers))
        weakref.finalize(line, in_memory.discard, number)
        most = max(most, len(in_memory))
        return line

    keys = ("one", "two", "three", "four")
    server = await start_server(FakeEngine(pause=0.01), api_keys=",".join(keys), max_rows=32, batch_requests=4)
    batches = []
    for key in keys:
        server.openai.api_key = key
        batches.append((key, await create_batch(server, *(make_line(number) for number in range(8)))))
        # after the validation of the first batch has begun
        monkeypatch.setattr(line_workers, "parse_validated_line", count)
    for key, batch in batches:
        server.openai.api_key = key
        assert (await wait_for_status(server, batch)).status == "completed"
    assert 0 < most <= 4 + len(keys)  # each key may have parsed one that it has not run yet


async def test_lines_of_a_key_leave_rows_of_batches_to_others(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 100, pause=0.01)
    server = await start_server(engine, max_rows=8, api_keys="one,two", key_share=0.5)
    server.openai.api_key = "one"
    await create_batch(server, *(make_line(number) for number in range(16)))
    await wait_until(lambda: engine.running == 4)
    server.openai.api_key = "two"
    await create_batch(server, *(make_line(number) for number in range(16)))
    await wait_until(lambda: engine.running == 6)
