"""Closing a stream frees its rows at once, at whatever stage it is."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from decoding.answer import Token
from decoding.ask import Ask
from decoding.hf_engine import probing as probing_module
from decoding.hf_engine import worker
from decoding.hf_engine.batch import Batch
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model import Model
from decoding.hf_engine.prefill import Ready
from decoding.hf_engine.prefixes import Prefixes
from decoding.hf_engine.request import Request
from tests.decoding.hf_engine.asking import answer, exactly, held, probing, prompt, say, until

LONG = exactly(200)


def is_idle(engine: HFEngine) -> bool:
    working = engine.worker
    return not (working.batch.rows or working._waiting or working._tickets or working._errands or engine._places)


async def test_the_rows_of_a_closed_stream_are_gone_before_the_next_step(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: list[tuple[bool, int]] = []
    step = Batch.step
    closed = threading.Event()

    def watched(batch: Batch) -> Any:
        stepped.append((closed.is_set(), len(batch.rows)))
        return step(batch)

    monkeypatch.setattr(Batch, "step", watched)
    other = asyncio.create_task(say(engine, prompt(), exactly(60)))
    stream = engine.generate(Ask(prompt(1), LONG, branches={"one/more": prompt(2)}))
    await anext(stream)
    await until(lambda: any(rows == 3 for _, rows in stepped))
    await stream.aclose()
    closed.set()
    await other
    after = [rows for was_closed, rows in stepped if was_closed]
    assert set(after[1:]) <= {1}  # the first may have begun before the stream was closed


async def test_an_answer_goes_on_as_if_the_one_beside_it_had_never_been(engine: HFEngine) -> None:
    alone = await say(engine, prompt(), exactly(40))
    streams = [engine.generate(Ask(prompt(seed), LONG)) for seed in range(1, 4)]
    for stream in streams:
        await anext(stream)
    task = asyncio.create_task(say(engine, prompt(), exactly(40)))
    for stream in streams:
        await anext(stream)
        await stream.aclose()
    assert (await task).text == alone.text
    await until(lambda: is_idle(engine))


async def test_a_request_is_cancelled_while_it_waits(engine: HFEngine) -> None:
    async with held(engine):
        task = asyncio.create_task(say(engine, prompt(), LONG))
        await until(lambda: not engine.worker._inbox.empty())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine._places
    await until(lambda: is_idle(engine))


async def test_a_request_is_cancelled_while_its_prompt_is_run(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go = threading.Event(), threading.Event()
    prefill = worker.prefill

    def slow(model: Model, requests: list[Request], prefixes: Prefixes) -> Ready:
        running.set()
        go.wait(20)
        return prefill(model, requests, prefixes)

    monkeypatch.setattr(worker, "prefill", slow)
    task = asyncio.create_task(say(engine, prompt(), LONG))
    await until(running.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await until(lambda: is_idle(engine))


async def test_a_cancelled_probe_leaves_nothing_and_is_not_run(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing_module, "run", lambda *_: pytest.fail("it ran"))
    async with held(engine):
        task = asyncio.create_task(engine.probe(probing()))
        await until(lambda: not engine.worker._inbox.empty())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: is_idle(engine))
    assert not engine._remembered


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
async def test_whenever_requests_are_cancelled_nothing_of_them_stays(delay: float, engine: HFEngine) -> None:
    names = ["plain", "vcd", "agla", "vhr", "vdgd", "agla+vhr", "vdgd+vcd", "vdgd+vhr"]
    tasks = [asyncio.create_task(answer(engine, name, prompt(i), exactly(30))) for i, name in enumerate(names)]
    await asyncio.sleep(delay)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, tuple | asyncio.CancelledError) for outcome in done)
    await until(lambda: is_idle(engine))
    assert not engine._remembered


async def test_a_stream_that_is_dropped_unclosed_is_cancelled_too(engine: HFEngine) -> None:
    async def first() -> Token:
        async for token in engine.generate(Ask(prompt(), LONG)):
            return token
        raise AssertionError

    await first()
    await until(lambda: is_idle(engine))
