"""`verify` on vLLM equals the transformers engine: alone, in a batch and under preemption."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from decoding.claims.claim_check import ClaimCheck
from decoding.outputs import Answer, CheckedClaim
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, SamplingParams
from decoding.strategies.verify import Verify
from decoding.strategy import Strategy
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.hf_engine.strategies.test_verify import CASES, SAMPLED_CASES, check_all, list_ids, load_scene

LENGTH = 60


async def run(engine: Any, stack: list[Strategy], number: int, **sampling: Any) -> Answer:
    async with StrategyRunner(stack, engine) as runner:
        request = GenerateRequest(load_scene(number), SamplingParams(max_tokens=LENGTH, **sampling))
        return await collect_answer(runner.stream(await runner.resolve(request)))


def list_claims(answer: Answer) -> list[CheckedClaim]:
    return [claim for token in answer.tokens for claim in token.claims]


def assert_same(answer: Answer, expected: Answer) -> None:
    assert list_ids(answer) == list_ids(expected)
    assert (answer.text, answer.finish.reason) == (expected.text, expected.finish.reason)
    claims, others = list_claims(answer), list_claims(expected)
    assert [replace(claim, probability=0.0) for claim in claims] == [
        replace(claim, probability=0.0) for claim in others
    ]
    assert [claim.probability for claim in claims] == pytest.approx([claim.probability for claim in others], abs=1e-3)


@pytest.mark.parametrize("inner", ["", "vcd", "vhr", "pai"])
async def test_equals_the_transformers_engine(inner: str, roomy_engine: Any, hf_engine: Any) -> None:
    stacks = [
        [Verify(threshold=threshold, tries=tries, views=views), *(build_stack(inner) if inner else ())]
        for _, threshold, tries, views in CASES
    ]
    numbers = [number for number, *_ in CASES]
    expected = [await run(hf_engine, stack, number) for stack, number in zip(stacks, numbers, strict=True)]
    alone = await run(roomy_engine, stacks[2], numbers[2])
    batch = await asyncio.gather(*(run(roomy_engine, *each) for each in zip(stacks, numbers, strict=True)))
    assert_same(alone, expected[2])
    for one, other in zip(batch, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("inner", ["plain", "vcd", "vhr"])
@pytest.mark.parametrize(("views", "debias"), [(0, 0.0), (2, 0.5)])
async def test_checked_answers_equal_those_of_the_transformers_engine(
    views: int, debias: float, inner: str, roomy_engine: Any, tight_engine: Any, hf_engine: Any
) -> None:
    check, stack, numbers = ClaimCheck(views=views, debias=debias), build_stack(inner), [number for number, *_ in CASES]
    plain = [await run(roomy_engine, list(stack), number) for number in numbers]
    expected = await check_all(hf_engine, stack, check, numbers)
    for engine in (roomy_engine, tight_engine):
        for answer, unchecked, other in zip(
            await check_all(engine, stack, check, numbers), plain, expected, strict=True
        ):
            assert list_ids(answer) == list_ids(unchecked)
            assert_same(answer, other)


@pytest.mark.parametrize("stop", [".\n", ". There", " in a"])
async def test_stop_strings_act_as_on_the_transformers_engine(stop: str, roomy_engine: Any, hf_engine: Any) -> None:
    for number in (1, 4, 18):
        expected, actual = [await run(engine, [Verify()], number, stop=(stop,)) for engine in (hf_engine, roomy_engine)]
        assert_same(actual, expected)


async def test_sampled_answers_do_not_depend_on_the_batch(roomy_engine: Any, tight_engine: Any) -> None:
    cases = [
        (number, [Verify(threshold=threshold, tries=tries)], seed) for number, threshold, tries, seed in SAMPLED_CASES
    ]
    alone = [await run(roomy_engine, stack, number, temperature=1.0, seed=seed) for number, stack, seed in cases]
    assert any(claim.action for answer in alone for token in answer.tokens for claim in token.claims)
    for engine in (roomy_engine, tight_engine):
        batch = await asyncio.gather(
            *(run(engine, stack, number, temperature=1.0, seed=seed) for number, stack, seed in cases * 2)
        )
        for answer, other in zip(batch, alone * 2, strict=True):
            assert_same(answer, other)


@pytest.mark.parametrize("inner", ["", "vcd"])
async def test_equals_the_transformers_engine_under_preemption(inner: str, tight_engine: Any, hf_engine: Any) -> None:
    """The second half of the answers, which contrast, make the scheduler count the preemptions of both."""
    numbers = [number for number, *_ in CASES]
    stacks = [[Verify(), *(build_stack(inner) if inner else ())], [Verify(), *build_stack("vcd")]]
    expected = [await run(hf_engine, stack, number) for stack in stacks for number in numbers]
    before = (await tight_engine.report())["counters"]
    answers = await asyncio.gather(*(run(tight_engine, stack, number) for stack in stacks for number in numbers))
    after = (await tight_engine.report())["counters"]
    assert sum(after[name] - before[name] for name in ("preemptions", "others_preempted")) > 0
    for answer, other in zip(answers, expected, strict=True):
        assert_same(answer, other)


async def test_receipt_counts_each_row_of_each_step(roomy_engine: Any) -> None:
    """Also of steps whose tokens have not arrived when a draft is aborted. Each request is a gang of two rows."""
    for number, threshold, tries, views in CASES:
        before = (await roomy_engine.report())["counters"]["tokens"]
        stack = [Verify(threshold=threshold, tries=tries, views=views), *build_stack("vcd")]
        async with StrategyRunner(stack, roomy_engine) as runner:
            request = GenerateRequest(load_scene(number), SamplingParams(max_tokens=LENGTH))
            answer = await collect_answer(runner.stream(await runner.resolve(request)))
        steps = (await roomy_engine.report())["counters"]["tokens"] - before
        assert runner.prior_usage.forward_passes + answer.finish.usage.forward_passes == 2 * steps


@pytest.mark.parametrize("names", ["plain", "vcd", "vhr", "pai", "dola"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
async def test_an_answer_continues_from_a_prefix(names: str, penalty: float, roomy_engine: Any) -> None:
    """With penalties and edits of attention, which treat a prompt in another way, the prefix is forced step by step."""
    whole = await run(roomy_engine, list(build_stack(names)), 3, repetition_penalty=penalty)
    ids = [token.id for token in whole.tokens]
    async with StrategyRunner(build_stack(names), roomy_engine) as runner:
        sampling = SamplingParams(max_tokens=LENGTH, repetition_penalty=penalty)
        outcome = await runner.resolve(GenerateRequest(load_scene(3), sampling))
        rest = await collect_answer(runner.stream(outcome.replace(answer_prefix=tuple(ids[:7]))))  # type: ignore[union-attr]
    assert [token.id for token in rest.tokens] == ids[7:]
    assert rest.finish.usage.completion_tokens == len(ids)
