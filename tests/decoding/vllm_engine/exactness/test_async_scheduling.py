"""Gangs under asynchronous scheduling give the tokens of the transformers engine, in a cache of a few blocks, too.

Every stack runs in one engine, in a batch of mixed stacks whose gangs preempt each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner
from decoding.requests import GenerateRequest
from decoding.sampling_params import SamplingParams
from tests.decoding.hf_engine.harness import build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.async_platform import allow_async_scheduling
from tests.decoding.vllm_engine.conftest import TIGHT, start_engine
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

FAULTY = "tests.decoding.vllm_engine.schedulers.FaultyAsyncScheduler"
HEADS = {"vhr": build_stack("vhr"), "agla+vhr": build_stack("agla+vhr"), "vhr+vcd": build_stack("vhr+vcd")}
PROMPTS = 2
TOKENS = 16
# Cut answers of a sentence or two, which end with an end token most of the time.
NATURAL = SamplingParams(max_tokens=40)
SAMPLED = exact_length(TOKENS, temperature=1.0, top_p=0.9, seed=3, repetition_penalty=1.2, top_logprobs=2)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine() -> AsyncIterator[Any]:
    with allow_async_scheduling():
        engine = await start_engine(async_scheduling=True, **TIGHT)
    yield engine
    await engine.close()


def mix_stacks(stacks: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return requests of all stacks, so that neighbours have different ones."""
    return [(stack, prompt) for prompt in load_prompts(PROMPTS) for stack in stacks.values()]


async def generate_naturally(engine: Any, requests: Sequence[tuple[Any, Any]]) -> list[Answer]:
    results = await asyncio.gather(*(run_strategies(engine, stack, prompt, NATURAL) for stack, prompt in requests))
    return [answer for answer, _ in results]


async def require_free(engine: Any) -> None:
    """Wait until the engine holds nothing, and check that no gang left the lockstep."""
    async with asyncio.timeout(20):
        while True:
            report = await engine.report()
            held = report["requests"] + report["gangs"] + report["workers"][0]["states"]
            if held == 0 and report["free_blocks"] == report["blocks"] - 1:
                break
            await asyncio.sleep(0.05)
    counters = report["counters"]
    assert counters["violations"] == counters["stock_preemptions"] == counters["failed"] == 0


async def test_mixed_stacks_equal_the_transformers_engine(engine: Any, hf_engine: Any) -> None:
    stacks = STACKS | HEADS
    requests = mix_stacks(stacks)
    expected = await generate_all(hf_engine, requests, TOKENS)
    before = (await engine.report())["counters"]
    actual = await generate_all(engine, requests, TOKENS)
    wrong = [
        name
        for name, each, other in zip([*stacks] * PROMPTS, actual, expected, strict=True)
        if (get_token_ids(each), each.finish.usage.changed_steps)
        != (get_token_ids(other), other.finish.usage.changed_steps)
    ]
    assert wrong == []
    report = await engine.report()
    assert report["async_scheduling"]
    assert report["scheduler"] == "GangAsyncScheduler"
    assert report["counters"]["preemptions"] > before["preemptions"]
    assert report["counters"]["alone"] > before["alone"]  # probes
    await require_free(engine)


async def test_answers_that_end_by_themselves_equal_the_transformers_engine(engine: Any, hf_engine: Any) -> None:
    """A step runs beyond the end token before it is known."""
    requests = mix_stacks({name: STACKS[name] for name in ("plain", "vcd", "vdgd", "pai+sid")} | HEADS)
    expected = await generate_naturally(hf_engine, requests)
    actual = await generate_naturally(engine, requests)
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    assert [each.finish.reason for each in actual] == [each.finish.reason for each in expected]
    ended = [each.finish.reason for each in actual].count("stop")
    assert ended > len(actual) / 4
    await require_free(engine)


async def test_sampling_equals_that_of_the_synchronous_engine(engine: Any, roomy_engine: Any) -> None:
    """Penalties read tokens that the host does not know yet."""
    requests = mix_stacks({name: STACKS[name] for name in ("plain", "vcd")})

    async def run(either: Any) -> list[Answer]:
        results = await asyncio.gather(*(run_strategies(either, stack, prompt, SAMPLED) for stack, prompt in requests))
        return [answer for answer, _ in results]

    expected, actual = await run(roomy_engine), await run(engine)
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    for each, other in zip(actual, expected, strict=True):
        for token, other_token in zip(each.tokens, other.tokens, strict=True):
            assert [top.id for top in token.top] == [top.id for top in other_token.top]
            expected_logprobs = [top.logprob for top in other_token.top]
            assert [top.logprob for top in token.top] == pytest.approx(expected_logprobs, abs=1e-3)


async def test_closed_answers_leave_nothing_behind(engine: Any) -> None:
    async def close_early(stack: Any, prompt: Any) -> None:
        async with StrategyRunner(stack, engine) as runner:
            outcome = await runner.resolve(GenerateRequest(prompt, exact_length(40)))
            async with aclosing(runner.stream(outcome)) as tokens:
                async for _ in tokens:
                    break

    await asyncio.gather(*(close_early(*each) for each in mix_stacks({"vcd": STACKS["vcd"], "plain": STACKS["plain"]})))
    await require_free(engine)


async def test_lone_tokens_are_dropped_and_sampled_again(hf_engine: Any) -> None:
    """The scheduler withholds a member in a tenth of its steps."""
    stacks = {name: STACKS[name] for name in ("vcd", "sid", "vdgd+vcd", "plain")}
    requests = mix_stacks(stacks | HEADS)
    expected = await generate_all(hf_engine, requests, TOKENS)
    with allow_async_scheduling():
        engine = await start_engine(async_scheduling=True, scheduler=FAULTY, **TIGHT)
    try:
        actual = await generate_all(engine, requests, TOKENS)
        counters = (await engine.report())["counters"]
    finally:
        await engine.close()
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    assert counters["violations"] == counters["redone"] > 20
    assert counters["failed"] == 0
