"""An engine that is not there yet, that stops, or that has stopped: everything is refused, nothing hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from decoding.ask import Ask, Relevance
from decoding.errors import EngineFailed, Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from tests.decoding.hf_engine.asking import exactly, held, picture, probing, prompt, say, until
from tests.decoding.hf_engine.conftest import started

pytestmark = pytest.mark.usefixtures("quiet")


async def test_closing_fails_what_still_runs_and_waits(tiny: Path) -> None:
    engine = await asyncio.to_thread(started, tiny, max_rows=2)
    running = [asyncio.create_task(say(engine, prompt(seed), exactly(300))) for seed in range(4)]
    await until(lambda: len(engine.worker.batch.rows) == len(engine.worker._waiting) == 2)
    async with held(engine):
        probes = [asyncio.create_task(engine.probe(probing())) for _ in range(2)]
        await until(lambda: engine.worker._inbox.qsize() == 2)
        closing = asyncio.create_task(engine.close())
        await until(lambda: engine.worker._inbox.qsize() == 3)
    await closing
    outcomes = await asyncio.wait_for(asyncio.gather(*running, *probes, return_exceptions=True), 10)
    assert [type(one) for one in outcomes[:4]] == [EngineFailed] * 4
    assert type(outcomes[-1]) is EngineFailed
    assert len(engine._remembered) == sum(isinstance(one, tuple) for one in outcomes)
    assert not engine.alive
    await engine.close()


async def test_after_closing_everything_is_refused_and_nothing_hangs(tiny: Path) -> None:
    engine = await asyncio.to_thread(started, tiny)
    await engine.close()
    for asked in (
        say(engine, prompt(), exactly(3)),
        engine.probe(probing()),
        engine.relevance(Relevance(picture(0), "a cat")),
        engine.worker.errand(lambda: None),
    ):
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(asked, 5)


async def test_a_request_that_is_encoded_while_the_engine_closes_is_failed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await asyncio.to_thread(started, tiny)
    tasks = [asyncio.create_task(say(engine, prompt(seed), exactly(300))) for seed in range(8)]
    await asyncio.sleep(0)
    await engine.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [type(one) for one in outcomes] == [EngineFailed] * 8


async def test_a_thread_that_dies_takes_nobody_along_in_silence(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await asyncio.to_thread(started, tiny)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    running = asyncio.create_task(say(engine, prompt(), exactly(300)))
    await until(lambda: engine.worker.batch.rows)
    engine.worker._drop_cancelled = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(running, 5)
    await until(lambda: not engine.alive)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(say(engine, prompt(), exactly(3)), 5)
    await engine.close()


def test_a_listener_whose_loop_is_gone_harms_nobody(engine: HFEngine) -> None:
    async def leave_behind() -> None:
        stream = engine.generate(Ask(prompt(), exactly(200)))
        await anext(stream)
        abandoned.append(stream)

    abandoned: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_behind())
    loop.close()
    assert len(asyncio.run(say(engine, prompt(), exactly(3))).tokens) == 3
    asyncio.run(until(lambda: not engine.worker.batch.rows, 20))


async def test_relevance_without_a_matcher_is_refused(tiny: Path) -> None:
    engine = await asyncio.to_thread(started, tiny)
    engine._matching.matcher = None
    assert "relevance" not in engine.capabilities
    with pytest.raises(Unsupported):
        await engine.relevance(Relevance(picture(0), "a cat"))
    await engine.close()


async def test_nothing_runs_before_the_model_is_loaded(tiny: Path) -> None:
    engine = HFEngine(HFSettings(str(tiny)))
    assert not engine.alive
    with pytest.raises(EngineFailed):
        await say(engine, prompt(), exactly(1))
    await engine.close()
