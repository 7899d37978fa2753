"""How many requests may wait, and run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from decoding.ask import Ask
from decoding.errors import Overloaded, Unsupported
from decoding.hf_engine import worker
from decoding.hf_engine.batch import Said
from decoding.stack import collect
from tests.decoding.hf_engine.asking import answer, exactly, held, probing, prompt, say, until
from tests.decoding.hf_engine.conftest import started


async def test_more_than_the_queue_holds_is_turned_away(tiny: Path) -> None:
    engine = await asyncio.to_thread(started, tiny, max_rows=2, max_waiting=4)
    pair = Ask(prompt(), exactly(5), branches={"one/more": prompt(1)})
    async with held(engine):
        waiting = [asyncio.create_task(collect(engine.generate(pair))) for _ in range(2)]
        await until(lambda: len(engine._places) == 2)
        for refused in (engine.generate(Ask(prompt(), exactly(5))), engine.generate(pair)):
            with pytest.raises(Overloaded) as full:
                await collect(refused)
            assert full.value.code == "queue_full"
        with pytest.raises(Overloaded):
            await engine.probe(probing())
    assert [len(said.tokens) for said in await asyncio.gather(*waiting)] == [5, 5]
    assert len((await collect(engine.generate(pair))).tokens) == 5
    await engine.close()


async def test_requests_that_arrive_at_once_cannot_slip_past_the_queues_end(tiny: Path) -> None:
    """They are counted before their prompts are encoded."""
    engine = await asyncio.to_thread(started, tiny, max_rows=1, max_waiting=3)
    async with held(engine):
        tasks = [asyncio.create_task(say(engine, prompt(), exactly(2))) for _ in range(10)]
        await until(lambda: sum(task.done() for task in tasks) == 7)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, Overloaded) for outcome in done) == 7
    await engine.close()


async def test_a_request_with_more_rows_than_the_engine_has_is_refused(tiny: Path) -> None:
    engine = await asyncio.to_thread(started, tiny, max_rows=2)
    with pytest.raises(Unsupported):
        await collect(engine.generate(Ask(prompt(), exactly(1), branches={"a/b": prompt(1), "a/c": prompt(2)})))
    await engine.close()


async def test_more_requests_than_rows_are_all_answered_in_turn(tiny: Path) -> None:
    engine = await asyncio.to_thread(started, tiny, max_rows=3)
    alone = [(await answer(engine, names, prompt(), exactly(12)))[0].text for names in ("plain", "vcd")]
    both = [answer(engine, names, prompt(), exactly(12)) for names in ("plain", "vcd")]
    many = [answer(engine, "plain", prompt(i), exactly(12)) for i in range(8)]
    said = await asyncio.gather(*many, *both)
    assert [one.text for one, _ in said[-2:]] == alone
    await engine.close()


async def test_running_answers_go_on_between_passes_over_those_that_come(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PREFILL_TOKENS", 1)  # each prompt is more than a pass reads, and is read by itself
    engine = await asyncio.to_thread(started, tiny, max_rows=8)
    batch, rows = engine.worker.batch, list[int]()
    step = batch.step

    def counted() -> Said:
        rows.append(len(batch.rows))
        return step()

    monkeypatch.setattr(batch, "step", counted)
    async with held(engine):
        tasks = [asyncio.create_task(say(engine, prompt(i), exactly(6))) for i in range(4)]
        await until(lambda: len(engine._places) == 4)
    await asyncio.gather(*tasks)
    assert rows[:4] == [1, 2, 3, 4]
    await engine.close()
