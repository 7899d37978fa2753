"""Limits on waiting and running requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from decoding.errors import Overloaded, Unsupported
from decoding.hf_engine import scheduler
from decoding.hf_engine.batch import StepOutputs
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest
from tests.decoding.hf_engine.conftest import start_engine
from tests.decoding.hf_engine.harness import (
    exact_length,
    generate,
    make_probe,
    make_prompt,
    pause_worker,
    run_strategies,
    wait_until,
)


async def test_full_queue_rejects_requests(tiny: Path) -> None:
    engine = await asyncio.to_thread(start_engine, tiny, max_rows=2, max_waiting=4)
    pair = GenerateRequest(make_prompt(), exact_length(5), branches={"one/more": make_prompt(1)})
    async with pause_worker(engine):
        waiting = [asyncio.create_task(collect_answer(engine.generate(pair))) for _ in range(2)]
        await wait_until(lambda: len(engine._reservations) == 2)
        for refused in (engine.generate(GenerateRequest(make_prompt(), exact_length(5))), engine.generate(pair)):
            with pytest.raises(Overloaded) as full:
                await collect_answer(refused)
            assert full.value.code == "queue_full"
        with pytest.raises(Overloaded):
            await engine.probe(make_probe())
    assert [len(answer.tokens) for answer in await asyncio.gather(*waiting)] == [5, 5]
    assert len((await collect_answer(engine.generate(pair))).tokens) == 5
    await engine.close()


async def test_concurrent_requests_cannot_exceed_the_queue(tiny: Path) -> None:
    """Requests are counted before their prompts are encoded."""
    engine = await asyncio.to_thread(start_engine, tiny, max_rows=1, max_waiting=3)
    async with pause_worker(engine):
        tasks = [asyncio.create_task(generate(engine, make_prompt(), exact_length(2))) for _ in range(10)]
        await wait_until(lambda: sum(task.done() for task in tasks) == 7)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, Overloaded) for outcome in done) == 7
    await engine.close()


async def test_request_with_too_many_rows_is_unsupported(tiny: Path) -> None:
    engine = await asyncio.to_thread(start_engine, tiny, max_rows=2)
    with pytest.raises(Unsupported):
        await collect_answer(
            engine.generate(
                GenerateRequest(make_prompt(), exact_length(1), branches={"a/b": make_prompt(1), "a/c": make_prompt(2)})
            )
        )
    await engine.close()


async def test_requests_beyond_max_rows_wait_for_their_turn(tiny: Path) -> None:
    engine = await asyncio.to_thread(start_engine, tiny, max_rows=3)
    alone = [
        (await run_strategies(engine, names, make_prompt(), exact_length(12)))[0].text for names in ("plain", "vcd")
    ]
    both = [run_strategies(engine, names, make_prompt(), exact_length(12)) for names in ("plain", "vcd")]
    many = [run_strategies(engine, "plain", make_prompt(i), exact_length(12)) for i in range(8)]
    results = await asyncio.gather(*many, *both)
    assert [one.text for one, _ in results[-2:]] == alone
    await engine.close()


async def test_steps_run_between_prefills(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 1)  # each prompt exceeds the limit, and runs alone
    engine = await asyncio.to_thread(start_engine, tiny, max_rows=8)
    batch, rows = engine.worker.batch, list[int]()
    step = batch.step

    def count_rows() -> StepOutputs:
        rows.append(len(batch.rows))
        return step()

    monkeypatch.setattr(batch, "step", count_rows)
    async with pause_worker(engine):
        tasks = [asyncio.create_task(generate(engine, make_prompt(i), exact_length(6))) for i in range(4)]
        await wait_until(lambda: len(engine._reservations) == 4)
    await asyncio.gather(*tasks)
    assert rows[:4] == [1, 2, 3, 4]
    await engine.close()
