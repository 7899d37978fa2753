"""Closing a stream frees its rows, whatever its status."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from decoding.hf_engine import worker
from decoding.hf_engine.batch import Batch
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.kv_cache.prefix_cache import PrefixCache
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.prefill import PrefillOutputs
from decoding.hf_engine.request import RequestState
from decoding.outputs import Token
from decoding.requests import GenerateRequest
from tests.decoding.hf_engine.harness import (
    exact_length,
    generate,
    make_probe,
    make_prompt,
    pause_worker,
    run_strategies,
    wait_until,
)

LONG = exact_length(200)


def is_idle(engine: HFEngine) -> bool:
    working = engine.worker
    return not (
        working.batch.rows
        or working.scheduler.waiting
        or working.scheduler.running
        or working._tasks
        or engine._reservations
    )


async def test_closing_a_stream_frees_its_rows_before_the_next_step(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: list[tuple[bool, int]] = []
    step = Batch.step
    closed = threading.Event()

    def record_rows(batch: Batch) -> Any:
        stepped.append((closed.is_set(), len(batch.rows)))
        return step(batch)

    monkeypatch.setattr(Batch, "step", record_rows)
    other = asyncio.create_task(generate(engine, make_prompt(), exact_length(60)))
    stream = engine.generate(GenerateRequest(make_prompt(1), LONG, branches={"one/more": make_prompt(2)}))
    await anext(stream)
    await wait_until(lambda: any(rows == 3 for _, rows in stepped))
    await stream.aclose()
    closed.set()
    await other
    after = [rows for was_closed, rows in stepped if was_closed]
    assert set(after[1:]) <= {1}  # the first step may have begun before


async def test_cancelled_requests_do_not_change_the_others(engine: HFEngine) -> None:
    alone = await generate(engine, make_prompt(), exact_length(40))
    streams = [engine.generate(GenerateRequest(make_prompt(seed), LONG)) for seed in range(1, 4)]
    for stream in streams:
        await anext(stream)
    task = asyncio.create_task(generate(engine, make_prompt(), exact_length(40)))
    for stream in streams:
        await anext(stream)
        await stream.aclose()
    assert (await task).text == alone.text
    await wait_until(lambda: is_idle(engine))


async def test_waiting_request_is_aborted(engine: HFEngine) -> None:
    async with pause_worker(engine):
        task = asyncio.create_task(generate(engine, make_prompt(), LONG))
        await wait_until(lambda: not engine.worker._inbox.empty())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine._reservations
    await wait_until(lambda: is_idle(engine))


async def test_request_is_aborted_during_prefill(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    running, go = threading.Event(), threading.Event()
    prefill = worker.prefill_requests

    def prefill_slowly(model: Model, requests: list[RequestState], prefixes: PrefixCache) -> PrefillOutputs:
        running.set()
        go.wait(20)
        return prefill(model, requests, prefixes)

    monkeypatch.setattr(worker, "prefill_requests", prefill_slowly)
    task = asyncio.create_task(generate(engine, make_prompt(), LONG))
    await wait_until(running.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await wait_until(lambda: is_idle(engine))


async def test_cancelled_probe_does_not_run(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "run_probes", lambda *_: pytest.fail("it ran"))
    async with pause_worker(engine):
        task = asyncio.create_task(engine.probe(make_probe()))
        await wait_until(lambda: not engine.worker._inbox.empty())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await wait_until(lambda: is_idle(engine))
    assert not engine._states


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
async def test_cancellation_at_any_time_frees_everything(delay: float, engine: HFEngine) -> None:
    names = ["plain", "vcd", "agla", "vhr", "vdgd", "agla+vhr", "vdgd+vcd", "vdgd+vhr"]
    tasks = [
        asyncio.create_task(run_strategies(engine, name, make_prompt(i), exact_length(30)))
        for i, name in enumerate(names)
    ]
    await asyncio.sleep(delay)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, tuple | asyncio.CancelledError) for outcome in done)
    await wait_until(lambda: is_idle(engine))
    assert not engine._states


async def test_dropped_stream_is_aborted(engine: HFEngine) -> None:
    async def read_first_token() -> Token:
        async for token in engine.generate(GenerateRequest(make_prompt(), LONG)):
            return token
        raise AssertionError

    await read_first_token()
    await wait_until(lambda: is_idle(engine))
