"""An engine that has not started, stops or has stopped rejects requests, and no request hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from decoding.errors import EngineFailed, Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.requests import GenerateRequest, ProbeRequest, RelevanceRequest
from tests.decoding.hf_engine.conftest import start_engine
from tests.decoding.hf_engine.harness import (
    build_stack,
    exact_length,
    generate,
    make_image,
    make_probe,
    make_prompt,
    pause_worker,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("captured_logs")


async def test_close_fails_running_and_waiting_requests(tiny: Path) -> None:
    engine = await asyncio.to_thread(start_engine, tiny, max_rows=2)
    (sid,), vhr_probe = build_stack("sid"), make_probe()
    other_pass = ProbeRequest(vhr_probe.prompts, main=vhr_probe.main, capture=frozenset({"attention"}))
    running = [asyncio.create_task(generate(engine, make_prompt(seed), exact_length(300))) for seed in range(4)]
    await wait_until(lambda: len(engine.worker.batch.rows) == len(engine.worker.scheduler.waiting) == 2)
    async with pause_worker(engine):
        probes = [
            asyncio.create_task(engine.probe(probe)) for probe in (vhr_probe, vhr_probe, other_pass.with_strategy(sid))
        ]
        await wait_until(lambda: engine.worker._inbox.qsize() == 3)
        closing = asyncio.create_task(engine.close())
        await wait_until(lambda: engine.worker._inbox.qsize() == 4)
    await closing
    outcomes = await asyncio.wait_for(asyncio.gather(*running, *probes, return_exceptions=True), 10)
    assert [type(one) for one in outcomes[:4]] == [EngineFailed] * 4
    assert type(outcomes[-1]) is EngineFailed
    assert len(engine._states) == sum(isinstance(one, tuple) for one in outcomes)
    assert not engine.is_alive
    await engine.close()


async def test_closed_engine_rejects_requests(tiny: Path) -> None:
    engine = await asyncio.to_thread(start_engine, tiny)
    await engine.close()
    for call in (
        generate(engine, make_prompt(), exact_length(3)),
        engine.probe(make_probe()),
        engine.compute_relevance_map(RelevanceRequest(make_image(0), "a cat")),
        engine.worker.run_task(lambda: None),
    ):
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(call, 5)


async def test_close_fails_requests_that_are_being_encoded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await asyncio.to_thread(start_engine, tiny)
    tasks = [asyncio.create_task(generate(engine, make_prompt(seed), exact_length(300))) for seed in range(8)]
    await asyncio.sleep(0)
    await engine.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [type(one) for one in outcomes] == [EngineFailed] * 8


async def test_dying_worker_thread_fails_its_requests(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await asyncio.to_thread(start_engine, tiny)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    running = asyncio.create_task(generate(engine, make_prompt(), exact_length(300)))
    await wait_until(lambda: engine.worker.batch.rows)
    monkeypatch.setattr(engine.worker.scheduler, "drop_aborted", lambda _: 1 / 0)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(running, 5)
    await wait_until(lambda: not engine.is_alive)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(generate(engine, make_prompt(), exact_length(3)), 5)
    await engine.close()


def test_closed_event_loop_does_not_stop_the_engine(engine: HFEngine) -> None:
    async def abandon_stream() -> None:
        stream = engine.generate(GenerateRequest(make_prompt(), exact_length(200)))
        await anext(stream)
        abandoned.append(stream)

    abandoned: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon_stream())
    loop.close()
    assert len(asyncio.run(generate(engine, make_prompt(), exact_length(3))).tokens) == 3
    asyncio.run(wait_until(lambda: not engine.worker.batch.rows, 20))


async def test_relevance_map_without_a_matcher_is_unsupported(tiny: Path) -> None:
    engine = await asyncio.to_thread(start_engine, tiny)
    engine.matcher_service.matcher = None
    assert "relevance" not in engine.capabilities
    with pytest.raises(Unsupported):
        await engine.compute_relevance_map(RelevanceRequest(make_image(0), "a cat"))
    await engine.close()


async def test_request_before_start_fails(tiny: Path) -> None:
    engine = HFEngine(HFSettings(str(tiny)))
    assert not engine.is_alive
    with pytest.raises(EngineFailed):
        await generate(engine, make_prompt(), exact_length(1))
    await engine.close()
