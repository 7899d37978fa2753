"""Answers that nobody waits for any more: everything they held is free again, and the others are not disturbed."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

from decoding.ask import Ask
from decoding.stack import Run
from tests.decoding.hf_engine.asking import exactly
from tests.decoding.vllm_engine.scenes import STACKS, answers, ids, prompts

ASKED = prompts(8)
STORM = 200
TOKENS = 24


async def is_free(engine: Any) -> bool:
    report = await engine.report()
    return (
        report["requests"] == report["gangs"] == report["worker"]["memories"] == 0
        and report["free_blocks"] == report["blocks"] - 1
        and engine.line.llm.output_processor.get_num_unfinished_requests() == 0
        and not engine._places
        and not engine._handles.known
    )


async def until_free(engine: Any) -> None:
    async with asyncio.timeout(20):
        while not await is_free(engine):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_closing_an_answer_frees_its_whole_gang(tight: Any) -> None:
    async with Run(STACKS["agla+vcd"], tight) as run:
        outcome = await run.resolve(Ask(ASKED[0], exactly(40)))
        async with aclosing(run.stream(outcome)) as tokens:
            async for _ in tokens:
                break
        assert (await tight.report())["gangs"] <= 1
    await until_free(tight)


async def test_a_storm_of_cancelled_requests_leaves_nothing_behind(tight: Any) -> None:
    dice = random.Random(0)
    names = [name for name in STACKS if name != "plain"]
    # How many others are over by then: seconds would be other moments on a faster machine.
    moments = {number: max(number - dice.randrange(16), 0) for number in range(1, STORM, 2)}
    over = 0

    async def one(number: int) -> list[int] | None:
        nonlocal over
        strategies, prompt = STACKS[names[number % len(names)]], ASKED[number % len(ASKED)]
        try:
            return ids((await answers(tight, [(strategies, prompt)], TOKENS))[0])
        except asyncio.CancelledError:
            return None
        finally:
            over += 1

    async def drop(number: int) -> None:
        while over < moments[number]:  # noqa: ASYNC110
            await asyncio.sleep(dice.uniform(0, 0.1))
        tasks[number].cancel()

    tasks = [asyncio.create_task(one(number)) for number in range(STORM)]
    await asyncio.gather(*map(drop, moments))
    said = await asyncio.gather(*tasks)
    await until_free(tight)
    dropped = sum(answer is None for answer in said)
    assert dropped > STORM / 4
    kept = {number: answer for number, answer in enumerate(said) if answer is not None}
    period = len(names) * len(ASKED)
    for number, answer in kept.items():  # the same question always has the same answer
        assert answer == next(kept[other] for other in kept if other % period == number % period)
    counters = (await tight.report())["counters"]
    assert counters["violations"] == counters["stock_preemptions"] == 0
    again = await answers(tight, [(STACKS[names[0]], ASKED[0])], TOKENS)
    assert ids(again[0]) == said[0]
