"""Cached prefixes are reused, and change no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.kv_cache.aligned_cache import KVState
from decoding.hf_engine.kv_cache.prefix_cache import PrefixCache
from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.hf_engine.request import RequestState
from decoding.outputs import Answer
from decoding.pipeline.runner import collect_answer
from decoding.prompt import Noise, Prompt
from decoding.requests import GenerateRequest
from decoding.text.prompt_encoder import ModelInputs
from tests.decoding.hf_engine.harness import (
    exact_length,
    generate,
    make_image,
    make_prompt,
    pause_worker,
    run_strategies,
    wait_until,
)
from tests.decoding.hf_engine.strategies.test_exactness import STACKS

PROMPT = make_prompt(seed=1)
SIBLING = make_prompt(seed=1, text="Is there a dog in the image?")
LENGTH = 12


async def run_stack(engine: HFEngine, names: str, prompt: Prompt) -> Answer:
    answer, _ = await run_strategies(engine, STACKS[names], prompt, exact_length(LENGTH, top_logprobs=0))
    return answer


@pytest.mark.parametrize("names", STACKS)
async def test_answers_do_not_depend_on_cached_prefixes(names: str, engine: HFEngine) -> None:
    cold = []
    for prompt in (PROMPT, SIBLING):
        engine.worker.prefix_cache.clear()
        cold.append(await run_stack(engine, names, prompt))
    await run_stack(engine, "plain", PROMPT)
    for prompt, before in zip((PROMPT, SIBLING), cold, strict=True):
        after = await run_stack(engine, names, prompt)
        assert [token.id for token in after.tokens] == [token.id for token in before.tokens]
        for one, other in zip(after.tokens, before.tokens, strict=True):
            assert one.chosen is not None
            assert other.chosen is not None
            assert one.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-4)
        assert after.finish.usage.forward_passes == before.finish.usage.forward_passes


async def test_prefix_of_an_edited_row_changes_logprobs(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would prove nothing: here a row with edited attention takes a plain row's prefix."""
    engine.worker.prefix_cache.clear()
    names = "pai without guidance"
    right = await run_stack(engine, names, PROMPT)
    monkeypatch.setattr(RequestState, "is_plain", lambda *_: True)
    await run_stack(engine, "plain", SIBLING)
    wrong = await run_stack(engine, names, PROMPT)
    engine.worker.prefix_cache.clear()
    assert [token.chosen for token in wrong.tokens] != [token.chosen for token in right.tokens]


async def test_concurrent_requests_prefill_their_image_once(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    full: list[ModelInputs] = []
    extended: list[int] = []
    prefill, extend = Model.prefill, Model.extend

    def record_prefill(model: Model, prompts: Sequence[ModelInputs], *rest: object) -> list[PrefillOutput]:
        full.extend(prompts)
        return prefill(model, prompts, *rest)  # type: ignore[arg-type]

    def record_extend(
        model: Model, states: Sequence[KVState], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[PrefillOutput]]:
        assert len(states) == 1, "the continuations of one prefix share a row"
        extended.extend(len(tokens) for each in continuations for tokens in each)
        return extend(model, states, continuations)

    monkeypatch.setattr(Model, "prefill", record_prefill)
    monkeypatch.setattr(Model, "extend", record_extend)
    engine.worker.prefix_cache.clear()
    before = await engine.get_counters()
    prompts = [make_prompt(seed=5, text=f"Is there a {name} in the image?") for name in ("cat", "dog", "cup", "bus")]
    async with pause_worker(engine):
        tasks = [asyncio.create_task(generate(engine, one, exact_length(1))) for one in prompts]
        await wait_until(lambda: engine.worker._inbox.qsize() == len(prompts))
    answers = await asyncio.gather(*tasks)
    assert [(len(full), len(extended))] == [(1, 3)]
    await generate(engine, prompts[0], exact_length(1))
    assert (len(full), len(extended)) == (1, 4)
    prompt_tokens = [one.finish.usage.prompt_tokens for one in answers]
    assert max(extended) < min(prompt_tokens)
    now = await engine.get_counters()
    assert now["prefix_cache_queries"] - before["prefix_cache_queries"] == sum(prompt_tokens) + prompt_tokens[0]
    assert 0 < now["prefix_cache_hits"] - before["prefix_cache_hits"] < prompt_tokens[0]


@pytest.mark.parametrize("names", ["plain", "vcd", "icd", "m3id", "vdgd", "code", "agla+vcd"])
async def test_another_salt_does_the_work_of_a_cold_request(names: str, engine: HFEngine) -> None:
    cache = engine.worker.prefix_cache
    cache.clear()

    async def count_hits(salt: str | None) -> int:
        before = cache.hits
        answer, usage = await run_strategies(engine, names, PROMPT, exact_length(LENGTH), cache_salt=salt)
        passes.add(answer.finish.usage.forward_passes + usage.forward_passes)
        return cache.hits - before

    passes: set[int] = set()
    cold, warm = await count_hits("one"), await count_hits("one")
    assert warm > cold  # a strategy can find prefixes of its own first requests
    assert [await count_hits("two"), await count_hits("two")] == [cold, warm]
    assert [await count_hits(None), await count_hits(None)] == [cold, warm]
    assert len(passes) == 1


async def test_equal_prompts_of_two_salts_run_twice_in_one_batch(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    full: list[ModelInputs] = []
    prefill = Model.prefill

    def record_prefill(model: Model, prompts: Sequence[ModelInputs], *rest: object) -> list[PrefillOutput]:
        full.extend(prompts)
        return prefill(model, prompts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "prefill", record_prefill)
    engine.worker.prefix_cache.clear()
    requests = [GenerateRequest(PROMPT, exact_length(1), cache_salt=salt) for salt in ("one", "two", "one")]
    async with pause_worker(engine):
        tasks = [asyncio.create_task(collect_answer(engine.generate(request))) for request in requests]
        await wait_until(lambda: engine.worker._inbox.qsize() == len(requests))
    answers = await asyncio.gather(*tasks)
    assert len(full) == 2
    assert len({answer.tokens[0].id for answer in answers}) == 1


def test_cache_is_bounded_and_keys_are_distinct(engine: HFEngine) -> None:
    model = engine.model
    noisy = Prompt.from_text("Hello.", make_image(0).with_noise(Noise(500, 1)))
    prompts = [make_prompt(0, "Hello."), make_prompt(0, "Hello there."), make_prompt(1, "Hello."), noisy]
    encoded = [model.encoder.encode(one) for one in prompts]
    cache = PrefixCache(model.encoder, model.image_token_id, 1 << 30)
    keys = [cache.build_key(*one) for one in zip(prompts, encoded, strict=True)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    text = prompts[0].without_images()
    assert cache.build_key(text, model.encoder.encode(text)) is None
    assert PrefixCache(model.encoder, model.image_token_id, 0).build_key(prompts[0], encoded[0]) is None

    (state,) = model.prefill(encoded[:1])
    small = PrefixCache(model.encoder, model.image_token_id, 2 * state.nbytes)
    for one in (keys[0], keys[2], keys[0], keys[3]):
        assert one is not None
        small.get(one, 1)
        small.put(one, state)
    assert small.bytes == 2 * state.nbytes
    assert [small.get(one, 1) is not None for one in keys if one] == [True, True, False, True]
