"""Cancelled requests free everything that they hold and do not affect the others."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

import pytest

from decoding.pipeline.runner import StrategyRunner
from decoding.requests import GenerateRequest
from tests.decoding.hf_engine.harness import exact_length, run_strategies
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

PROMPTS = load_prompts(8)
REQUESTS = 200
TOKENS = 24


async def is_free(engine: Any) -> bool:
    report = await engine.report()
    return (
        report["requests"] == report["gangs"] == report["workers"][0]["states"] == 0
        and report["free_blocks"] == report["blocks"] - 1
        and engine.client.llm.output_processor.get_num_unfinished_requests() == 0
        and not engine._reservations
        # Vectors of a file stay, for the next request that names it.
        and all(handle.startswith("vectors-") for handle in engine._state_handles.known)
    )


async def wait_until_free(engine: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await is_free(engine):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("names", ["plain", "vcd", "vhr"])
async def test_stop_string_ends_the_request_in_the_engine(names: str, roomy_engine: Any) -> None:
    """vLLM does not know of stop strings."""
    whole, _ = await run_strategies(roomy_engine, names, PROMPTS[0], exact_length(12))
    stop = whole.text.split()[2]
    answer, _ = await run_strategies(roomy_engine, names, PROMPTS[0], exact_length(1500, stop=(stop,)))
    assert answer.finish.reason == "stop"
    assert len(answer.tokens) < 12
    await wait_until_free(roomy_engine, 4)  # the whole answer takes longer


async def test_closing_an_answer_frees_its_gang(tight_engine: Any) -> None:
    async with StrategyRunner(STACKS["agla+vcd"], tight_engine) as runner:
        outcome = await runner.resolve(GenerateRequest(PROMPTS[0], exact_length(40)))
        async with aclosing(runner.stream(outcome)) as tokens:
            async for _ in tokens:
                break
        assert (await tight_engine.report())["gangs"] <= 1
    await wait_until_free(tight_engine)


async def test_many_cancelled_requests_leave_nothing_behind(tight_engine: Any) -> None:
    rng = random.Random(0)
    names = [name for name in STACKS if name != "plain"]
    # Finished requests, and not seconds: a faster machine would cancel at other moments.
    moments = {number: max(number - rng.randrange(16), 0) for number in range(1, REQUESTS, 2)}
    finished = 0

    async def run(number: int) -> list[int] | None:
        nonlocal finished
        strategies, prompt = STACKS[names[number % len(names)]], PROMPTS[number % len(PROMPTS)]
        try:
            return get_token_ids((await generate_all(tight_engine, [(strategies, prompt)], TOKENS))[0])
        except asyncio.CancelledError:
            return None
        finally:
            finished += 1

    async def cancel(number: int) -> None:
        while finished < moments[number]:  # noqa: ASYNC110
            await asyncio.sleep(rng.uniform(0, 0.02))
        tasks[number].cancel()

    tasks = [asyncio.create_task(run(number)) for number in range(REQUESTS)]
    await asyncio.gather(*map(cancel, moments))
    actual = await asyncio.gather(*tasks)
    await wait_until_free(tight_engine)
    cancelled = sum(answer is None for answer in actual)
    assert cancelled > REQUESTS / 8
    kept = {number: answer for number, answer in enumerate(actual) if answer is not None}
    period = len(names) * len(PROMPTS)
    for number, answer in kept.items():  # equal requests have equal answers
        assert answer == next(kept[other] for other in kept if other % period == number % period)
    counters = (await tight_engine.report())["counters"]
    assert counters["violations"] == counters["stock_preemptions"] == 0
    again = await generate_all(tight_engine, [(STACKS[names[0]], PROMPTS[0])], TOKENS)
    assert get_token_ids(again[0]) == actual[0]
