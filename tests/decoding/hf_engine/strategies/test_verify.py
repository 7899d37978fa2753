"""`verify` against a naive loop that recomputes everything from scratch, without cache, batch or stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from decoding.claims.claim_check import ClaimCheck
from decoding.claims.sentences import find_sentence_end
from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, ImageInput, Prompt
from decoding.strategies.verify import Verify
from decoding.strategy import Strategy
from tests.decoding.hf_engine.conftest import EMBEDDED
from tests.decoding.hf_engine.harness import FakeMatcher, build_stack
from tests.decoding.hf_engine.reference import Reference
from tests.decoding.hf_engine.strategies.naive_verify import GREEDY, NaiveCheck, NaiveVerify

SCENES = Path(__file__).parents[4] / "embedded" / "scenes" / "images"
DESCRIBE = "Please describe this image in detail."
# Scenes, thresholds, tries and views for which the loop goes back, cuts sentences short and drops them.
CASES = [
    (1, 0.98, 2, 0),
    (3, 0.5, 2, 1),
    (4, 0.9, 2, 2),
    (15, 0.5, 0, 0),
    (18, 0.5, 2, 1),
    (28, 0.5, 3, 2),
    (32, 0.5, 0, 0),
    (40, 0.97, 0, 2),
]

CHECKED_SCENES = [3, 15, 28]
# The same at temperature 1, with seeds.
SAMPLED_CASES = [(3, 0.9, 2, 2), (3, 0.9, 2, 2**62), (7, 0.9, 2, 1), (15, 0.97, 0, 2), (28, 0.9, 2, 0)]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(EMBEDDED, FakeMatcher().relevance)


def load_scene(number: int) -> Prompt:
    with Image.open(SCENES / f"{number:012}.png") as image:
        return Prompt.from_text(DESCRIBE, ImageInput(image.convert("RGB")))


async def run_verify(engine: HFEngine, stack: Sequence[Strategy], prompt: Prompt, **sampling: Any) -> Answer:
    async with StrategyRunner(stack, engine) as runner:
        request = GenerateRequest(prompt, replace(GREEDY, **sampling))
        return await collect_answer(runner.stream(await runner.resolve(request)))


def assert_equal(answer: Answer, naive: NaiveVerify) -> None:
    """Compare tokens and claims with those of the naive loop, which runs once."""
    if not naive.drafts:
        naive.answer = naive.run()
    # A sentence that is cut short ends with a text.
    ids = [
        id_
        for token in answer.tokens
        for id_ in ([token.id] if token.id >= 0 else naive.tokenizer(token.text, add_special_tokens=False)["input_ids"])
        if id_ != naive.eos
    ]
    assert ids == naive.answer
    assert answer.text == naive.decode(naive.answer)
    claims = [(claim.text, claim.action, claim.probability) for token in answer.tokens for claim in token.claims]
    assert [claim[:2] for claim in claims] == [claim[:2] for claim in naive.claims]
    assert [claim[2] for claim in claims] == pytest.approx([claim[2] for claim in naive.claims], abs=1e-4)


@pytest.mark.parametrize(("number", "threshold", "tries", "views"), CASES)
async def test_answer_equals_recomputation(
    number: int, threshold: float, tries: int, views: int, embedded: HFEngine, reference: Reference
) -> None:
    strategy = Verify(threshold=threshold, tries=tries, views=views, debias=0.5 if number % 4 == 0 else 0.0)
    naive = NaiveVerify(reference, (), load_scene(number), strategy)
    assert_equal(await run_verify(embedded, [strategy], load_scene(number)), naive)
    others = [run_verify(embedded, build_stack("vcd"), load_scene(other)) for other in (11, 12, 13)]
    joined, *_ = await asyncio.gather(run_verify(embedded, [strategy], load_scene(number)), *others)
    assert_equal(joined, naive)


@pytest.mark.parametrize(("number", "threshold", "tries", "seed"), SAMPLED_CASES)
@pytest.mark.parametrize("inner", ["", "vcd"])
async def test_sampled_answer_equals_recomputation(
    inner: str, number: int, threshold: float, tries: int, seed: int, embedded: HFEngine, reference: Reference
) -> None:
    strategy, stack = Verify(threshold=threshold, tries=tries), build_stack(inner) if inner else ()
    sampling = {"temperature": 1.0, "seed": seed}
    naive = NaiveVerify(reference, stack, load_scene(number), strategy, replace(GREEDY, **sampling))
    assert_equal(await run_verify(embedded, [strategy, *stack], load_scene(number), **sampling), naive)
    if not inner:
        assert naive.events
    others = [run_verify(embedded, build_stack("vcd"), load_scene(other)) for other in (11, 12)]
    again = run_verify(embedded, [strategy, *stack], load_scene(number), **sampling)
    joined, *_ = await asyncio.gather(again, *others)
    assert_equal(joined, naive)


@pytest.mark.parametrize(
    "sampling",
    [
        {"min_tokens": 24},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.8, "presence_penalty": 0.5},
        {"repetition_penalty": 1.1, "temperature": 1.0, "seed": 5, "min_tokens": 12},
    ],
    ids=lambda sampling: "-".join(sampling),
)
@pytest.mark.parametrize("number", [4, 18])
async def test_answer_with_sampling_parameters_equals_recomputation(
    number: int, sampling: dict[str, Any], embedded: HFEngine, reference: Reference
) -> None:
    strategy = Verify(threshold=0.97)
    naive = NaiveVerify(reference, (), load_scene(number), strategy, replace(GREEDY, **sampling))
    assert_equal(await run_verify(embedded, [strategy], load_scene(number), **sampling), naive)
    assert naive.events


async def test_choices_equal_recomputation(embedded: HFEngine, reference: Reference) -> None:
    """They share the answers to equal questions."""
    strategy, prompt = Verify(), load_scene(3)
    async with StrategyRunner([strategy], embedded) as runner:
        outcome = await runner.resolve(GenerateRequest(prompt, replace(GREEDY, temperature=1.0, seed=0)))
        samplings = [replace(GREEDY, temperature=1.0, seed=seed) for seed in (0, 1, 2)]
        streams = [runner.stream(outcome.replace(sampling=sampling)) for sampling in samplings]  # type: ignore[union-attr]
        answers = await asyncio.gather(*map(collect_answer, streams))
    for answer, sampling in zip(answers, samplings, strict=True):
        assert_equal(answer, NaiveVerify(reference, (), prompt, strategy, sampling))


@pytest.mark.parametrize("inner", ["vcd", "vhr"])
async def test_drafts_and_checks_go_through_the_inner_strategy(
    inner: str, embedded: HFEngine, reference: Reference
) -> None:
    strategy, stack = Verify(), build_stack(inner)
    naive = NaiveVerify(reference, stack, load_scene(3), strategy)
    assert_equal(await run_verify(embedded, [strategy, *stack], load_scene(3)), naive)


@pytest.mark.parametrize("inner", ["", "vcd", "vhr"])
@pytest.mark.parametrize(("views", "debias"), [(0, 0.0), (3, 0.0), (2, 0.5)])
async def test_checked_answer_equals_recomputation(
    views: int, debias: float, inner: str, embedded: HFEngine, reference: Reference
) -> None:
    stack = build_stack(inner or "plain")
    expected = [await run_verify(embedded, stack, load_scene(number)) for number in CHECKED_SCENES]
    check = ClaimCheck(views=views, debias=debias)
    for number, plain, answer in zip(
        CHECKED_SCENES, expected, await check_all(embedded, stack, check, CHECKED_SCENES), strict=True
    ):
        assert list_ids(answer) == list_ids(plain)
        assert (answer.text, answer.finish.reason) == (plain.text, plain.finish.reason)
        naive = NaiveCheck(reference, stack if inner else (), load_scene(number), views, debias)
        assert_same_claims(answer, naive.list_claims(answer.text))


async def check_all(engine: Any, stack: Sequence[Strategy], check: ClaimCheck, numbers: Sequence[int]) -> list[Answer]:
    """Check the answers about scenes: the first one alone, the others together."""

    async def run(number: int) -> Answer:
        async with StrategyRunner(stack, engine) as runner:
            request = GenerateRequest(load_scene(number), GREEDY)
            return await collect_answer(runner.stream(await runner.resolve(request, check=check)))

    return [await run(numbers[0]), *await asyncio.gather(*map(run, numbers[1:]))]


def list_ids(answer: Answer) -> list[int]:
    return [token.id for token in answer.tokens if token.id >= 0]


def assert_same_claims(answer: Answer, expected: Sequence[tuple[str, int, int, float]]) -> None:
    claims = [claim for token in answer.tokens for claim in token.claims]
    assert [(claim.text, claim.start, claim.end) for claim in claims] == [claim[:3] for claim in expected]
    assert [claim.probability for claim in claims] == pytest.approx([claim[3] for claim in expected], abs=1e-4)


def test_the_cases_go_back_cut_and_drop(reference: Reference) -> None:
    events: list[str] = []
    for number, threshold, tries, views in CASES:
        strategy = Verify(threshold=threshold, tries=tries, views=views)
        naive = NaiveVerify(reference, (), load_scene(number), strategy)
        naive.run()
        events += naive.events
    assert {"replaced", "cut", "rewritten", "dropped"} <= set(events)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_threshold_of_0_is_the_plain_answer(temperature: float, embedded: HFEngine) -> None:
    plain = await run_verify(embedded, build_stack("plain"), load_scene(2), temperature=temperature, seed=5)
    same = await run_verify(embedded, [Verify(threshold=0.0)], load_scene(2), temperature=temperature, seed=5)
    assert [token.id for token in same.tokens if token.id >= 0] == [token.id for token in plain.tokens]
    assert same.finish.usage.completion_tokens == plain.finish.usage.completion_tokens
    assert same.finish.usage.changed_steps == plain.finish.usage.changed_steps == 0


async def test_a_sampled_answer_can_be_reproduced(embedded: HFEngine) -> None:
    first, second = [
        await run_verify(embedded, [Verify(threshold=0.9)], load_scene(3), temperature=1.0, seed=11) for _ in range(2)
    ]
    assert first.text == second.text


STOPS = [".\n", ". \n", ". A fork", " a sports ball zzz"]  # they begin in the answers, and do not occur in them


@pytest.mark.parametrize("stop", STOPS)
async def test_a_stop_string_that_does_not_occur_changes_nothing(stop: str, embedded: HFEngine) -> None:
    for number in (1, 4, 18):
        plain = await run_verify(embedded, [Verify()], load_scene(number))
        stopped = await run_verify(embedded, [Verify()], load_scene(number), stop=(stop,))
        if stop in plain.text:
            assert stopped.text == plain.text[: plain.text.index(stop)]
            continue
        assert stopped.text == plain.text
        assert list_actions(stopped) == list_actions(plain)
        assert [token.id for token in stopped.tokens] == [token.id for token in plain.tokens]


@pytest.mark.parametrize("number", [3, 4, 28])
async def test_a_stop_string_cuts_the_answer(number: int, embedded: HFEngine) -> None:
    whole = await run_verify(embedded, [Verify()], load_scene(number))
    end = find_sentence_end(whole.text)
    assert end is not None
    for stop in (whole.text[end - 3 : end + 2], " in a", "."):
        answer = await run_verify(embedded, [Verify()], load_scene(number), stop=(stop,))
        assert answer.text == whole.text[: whole.text.find(stop) if stop in whole.text else None]
        assert answer.finish.reason == "stop"
        ends = [claim.end for token in answer.tokens for claim in token.claims if claim.end is not None]
        assert max(ends, default=0) <= len(answer.text)


def list_actions(answer: Answer) -> list[tuple[str, str | None]]:
    return [(claim.text, claim.action) for token in answer.tokens for claim in token.claims]
