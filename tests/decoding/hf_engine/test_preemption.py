"""A KV cache that is too small for all requests: the newest ones are preempted, and no answer changes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from decoding.errors import BadRequest
from decoding.hf_engine.batch import Batch
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import DEFAULT_CONTEXTS
from decoding.outputs import Answer
from decoding.requests import GenerateRequest, Prompt, SamplingParams
from tests.decoding.hf_engine.harness import (
    build_stack,
    exact_length,
    generate,
    make_prompt,
    pause_worker,
    run_strategies,
    wait_until,
)
from tests.decoding.hf_engine.test_batching import NEWCOMERS, BatchMember
from tests.decoding.hf_engine.test_lazy_branches import LazyContrast

LENGTH = 160  # several moves of the buffers
LIMITED = 1100  # slots: six short rows can start, but only four can have `LENGTH` tokens
PERIOD = 37  # steps between two forced preemptions


@pytest.fixture
def limited(engine: HFEngine) -> Iterator[HFEngine]:
    """Limit the KV cache of the engine, and free the buffers of earlier tests, which may be larger."""
    worker, before = engine.worker, engine.worker.batch.cache.max_slots
    worker.batch.cache.release_buffers()
    worker.batch.cache.max_slots, worker.scheduler.preemptions = LIMITED, 0
    yield engine
    worker.batch.cache.max_slots = before


@pytest.fixture
def preempting(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[HFEngine]:
    """Let the engine preempt the newest request at every `PERIOD`-th step at which several run."""
    steps = itertools.count(1)
    engine.worker.scheduler.preemptions = 0
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "has_room_for_step", property(lambda batch: next(steps) % PERIOD != 0))
        yield engine


async def start_together(
    engine: HFEngine, prompts: Sequence[Prompt], sampling: Sequence[SamplingParams]
) -> list[asyncio.Task[Answer]]:
    """Start requests that reach the worker at one instant."""
    async with pause_worker(engine):
        tasks = [asyncio.create_task(generate(engine, *each)) for each in zip(prompts, sampling, strict=True)]
        await wait_until(lambda: engine.worker._inbox.qsize() == len(tasks))
    return tasks


def test_cache_has_eight_contexts_by_default(engine: HFEngine) -> None:
    model = engine.model
    (state,) = model.prefill([model.encoder.encode(make_prompt())])
    assert model.count_cache_slots(None) == engine.worker.max_slots == DEFAULT_CONTEXTS * model.max_model_len
    assert model.count_cache_slots(10 * state.nbytes) == 10 * state.length


@pytest.mark.parametrize("names", NEWCOMERS)
async def test_preemption_changes_no_answer(names: str, preempting: HFEngine) -> None:
    """Requests of each strategy are preempted beside plain ones, and beside one of each kind of hook."""
    parameters = {"verify": {"threshold": 0.0}} if names == "verify" else {}
    stack = build_stack(names, **parameters)
    wanted = [
        (build_stack("plain"), make_prompt(seed=1), LENGTH),
        (stack, make_prompt(seed=2), LENGTH),
        (build_stack("vcd+vhr"), make_prompt(seed=3), LENGTH),
        (stack, make_prompt(seed=4), LENGTH),
    ]
    together = await asyncio.gather(*(BatchMember(preempting, each).run() for each in wanted))
    assert preempting.worker.scheduler.preemptions > 0
    assert together == [await BatchMember(preempting, each).run() for each in wanted]


async def test_preempted_requests_sample_the_same_tokens(limited: HFEngine) -> None:
    """The sampler, penalties, log-probabilities and the usage continue where they were."""
    sampling = [
        exact_length(LENGTH, temperature=1.0, seed=seed, frequency_penalty=0.5, top_logprobs=2) for seed in range(6)
    ]
    prompts = [make_prompt(seed) for seed in range(6)]

    def strip(answer: Answer) -> tuple[Any, ...]:
        usage = answer.finish.usage
        tokens = [(token.id, token.text, token.changed) for token in answer.tokens]
        logprobs = [token.chosen.logprob for token in answer.tokens if token.chosen]
        return tokens, usage.forward_passes, usage.steps, usage.completion_tokens, logprobs

    together = await asyncio.gather(*await start_together(limited, prompts, sampling))
    assert limited.worker.scheduler.preemptions > 0
    limited.worker.batch.cache.max_slots = 1 << 30
    alone = [await generate(limited, *each) for each in zip(prompts, sampling, strict=True)]
    for preempted, expected in zip(map(strip, together), map(strip, alone), strict=True):
        assert preempted[:-1] == expected[:-1]
        assert preempted[-1] == pytest.approx(expected[-1], abs=1e-3)


async def test_lazy_branches_continue_after_a_preemption(preempting: HFEngine) -> None:
    cases = [((LazyContrast(most=0.5),), make_prompt(seed), exact_length(LENGTH)) for seed in range(3)]
    together = await asyncio.gather(*(run_strategies(preempting, *case) for case in cases))
    assert preempting.worker.scheduler.preemptions > 0
    for (answer, _), case in zip(together, cases, strict=True):
        alone, _ = await run_strategies(preempting, *case)
        assert [token.id for token in answer.tokens] == [token.id for token in alone.tokens]
        assert answer.finish.usage.forward_passes == alone.finish.usage.forward_passes


async def test_cache_stays_within_its_limit(limited: HFEngine) -> None:
    cache, largest = limited.worker.batch.cache, 0
    move = type(cache)._move

    def measure(self: object, *arguments: int) -> None:
        nonlocal largest
        move(cache, *arguments)
        keys = cache.layers[0].keys
        largest = max(largest, keys.shape[0] * keys.shape[2])

    limited.worker.batch.cache._move = measure.__get__(cache)  # type: ignore[method-assign]
    try:
        lengths = [LENGTH, 10, LENGTH // 2, 5, LENGTH, 20, 30, LENGTH]
        prompts = [make_prompt(seed) for seed in range(len(lengths))]
        sampling = [exact_length(length) for length in lengths]
        answers = await asyncio.gather(*await start_together(limited, prompts, sampling))
    finally:
        del cache._move
    assert [len(answer.tokens) for answer in answers] == lengths
    assert 0 < largest <= LIMITED


async def test_request_that_needs_more_than_the_cache_runs_alone(limited: HFEngine) -> None:
    limited.worker.batch.cache.max_slots = 10
    answers = await asyncio.gather(*(generate(limited, make_prompt(seed), exact_length(70)) for seed in range(3)))
    assert [len(answer.tokens) for answer in answers] == [70] * 3
    limited.worker.batch.cache.max_slots = 1 << 30
    for seed, answer in enumerate(answers):
        alone = await generate(limited, make_prompt(seed), exact_length(70))
        assert answer.text == alone.text


async def test_preempted_request_can_be_cancelled(limited: HFEngine) -> None:
    prompts = [make_prompt(seed) for seed in range(5)]
    tasks = await start_together(limited, prompts, [exact_length(450)] * 5)
    await wait_until(lambda: limited.worker.scheduler.preemptions > 0)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks[1:])
    assert len((await tasks[0]).tokens) == 450
    await wait_until(lambda: not limited.worker.batch.rows and not limited.worker.scheduler.waiting)
    assert not limited._reservations


async def test_request_of_another_key_does_not_wait_for_long_answers(limited: HFEngine) -> None:
    """Long answers of the first key hold the whole cache. Some are preempted, and have the same tokens in the end."""
    plain = build_stack("plain")
    long = [
        asyncio.create_task(run_strategies(limited, plain, make_prompt(seed), exact_length(200), cache_salt="first"))
        for seed in range(6)
    ]
    await wait_until(lambda: limited.worker.batch.cache.width > 150)
    await run_strategies(limited, plain, make_prompt(9), exact_length(5), cache_salt="second")
    assert not all(task.done() for task in long)
    answers = [(await task)[0] for task in long]
    limited.worker.batch.cache.max_slots = 1 << 30
    for seed, answer in enumerate(answers):
        alone, _ = await run_strategies(limited, plain, make_prompt(seed), exact_length(200))
        assert [token.id for token in answer.tokens] == [token.id for token in alone.tokens]


async def test_prompts_that_fill_half_of_the_cache_are_refused(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = len(await engine.tokenize(make_prompt()))
    monkeypatch.setattr(engine.worker, "max_slots", 4 * length)
    await run_strategies(engine, "vcd", make_prompt(), exact_length(2))
    monkeypatch.setattr(engine.worker, "max_slots", 4 * length - 1)
    with pytest.raises(BadRequest, match=r"2 rows .* KV cache") as refused:
        await run_strategies(engine, "vcd", make_prompt(), exact_length(2))
    with pytest.raises(BadRequest, match=r"2 rows .* KV cache"):
        await engine.check(GenerateRequest(make_prompt(), exact_length(2), branches={"vcd/noised": make_prompt()}))
    await engine.check(GenerateRequest(make_prompt(), exact_length(2)))
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")
    await run_strategies(engine, "plain", make_prompt(), exact_length(2))
