"""`verify` on vLLM equals the transformers engine: alone, in a batch and under preemption."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, SamplingParams
from decoding.strategies.verify import Verify
from decoding.strategy import Strategy
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.hf_engine.strategies.test_verify import CASES, SAMPLED_CASES, load_scene

LENGTH = 60


async def run(engine: Any, stack: list[Strategy], number: int, **sampling: Any) -> Answer:
    async with StrategyRunner(stack, engine) as runner:
        request = GenerateRequest(load_scene(number), SamplingParams(max_tokens=LENGTH, **sampling))
        return await collect_answer(runner.stream(await runner.resolve(request)))


def list_claims(answer: Answer) -> list[tuple[str, str | None]]:
    return [(claim.text, claim.action) for token in answer.tokens for claim in token.claims]


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
    assert alone.text == expected[2].text
    for one, other in zip(batch, expected, strict=True):
        assert one.text == other.text
        assert list_claims(one) == list_claims(other)
        assert one.finish.reason == other.finish.reason


@pytest.mark.parametrize("stop", [".\n", ". There", " in a"])
async def test_stop_strings_act_as_on_the_transformers_engine(stop: str, roomy_engine: Any, hf_engine: Any) -> None:
    for number in (1, 4, 18):
        expected, actual = [await run(engine, [Verify()], number, stop=(stop,)) for engine in (hf_engine, roomy_engine)]
        assert (actual.text, actual.finish.reason) == (expected.text, expected.finish.reason)
        assert list_claims(actual) == list_claims(expected)


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
        assert [answer.text for answer in batch] == [answer.text for answer in alone * 2]


async def test_equals_itself_under_preemption(tight_engine: Any, hf_engine: Any) -> None:
    numbers = [number for number, *_ in CASES]
    expected = [await run(hf_engine, [Verify()], number) for number in numbers]
    answers = await asyncio.gather(*(run(tight_engine, [Verify()], number) for number in numbers * 2))
    assert [answer.text for answer in answers] == [answer.text for answer in expected * 2]


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
