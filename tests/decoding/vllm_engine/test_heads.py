"""Scaled attention heads per request, and the probe that selects them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from decoding.errors import BadRequest, EngineFailed
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, ImageInput, ProbeRequest, Prompt, StateHandle
from decoding.strategies.attention.vhr import VHR
from tests.decoding.hf_engine.harness import FakeMatcher, build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.conftest import EMBEDDED, start_engine
from tests.decoding.vllm_engine.scenes import compute_first_logprobs, generate_all, get_token_ids, load_prompts
from tests.system_packages import require_program

PROMPTS = 24
TOKENS = 24
NAIVE_PROMPTS = 6
STACKS = {
    "vhr": build_stack("vhr"),
    "vhr, strong": build_stack("vhr", vhr={"alpha": 6.0, "late": 1.0}),
    "agla+vhr": build_stack("agla+vhr"),
    "vdgd+vhr": build_stack("vdgd+vhr"),
}


def make_probe(prompt: Prompt, vhr: VHR) -> ProbeRequest:
    pair = {"with_image": prompt, "without_image": prompt.without_images()}
    return ProbeRequest(pair, main="with_image", layerwise=True).with_strategy(vhr)


@pytest.mark.parametrize("names", STACKS)
async def test_scaled_heads_equal_the_transformers_engine(names: str, roomy_engine: Any, hf_engine: Any) -> None:
    requests = [(STACKS[names], prompt) for prompt in load_prompts(PROMPTS)]
    expected, actual = (
        await generate_all(hf_engine, requests, TOKENS),
        await generate_all(roomy_engine, requests, TOKENS),
    )
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]


@pytest.mark.parametrize("names", STACKS)
async def test_scaled_heads_equal_the_naive_reference(names: str, roomy_engine: Any) -> None:
    from tests.decoding.hf_engine.reference import Reference

    naive = Reference(EMBEDDED, FakeMatcher().relevance)
    scenes = load_prompts(NAIVE_PROMPTS)
    actual = await generate_all(roomy_engine, [(STACKS[names], prompt) for prompt in scenes], 8)
    for each, prompt in zip(actual, scenes, strict=True):
        assert get_token_ids(each) == naive.decode(STACKS[names], prompt, 8).tokens


async def test_factors_change_the_answer_of_their_own_request_only(roomy_engine: Any, hf_engine: Any) -> None:
    """One prompt runs with three sets of factors and with none at the same time. They share no KV cache."""
    prompt = load_prompts(1)[0]
    sets = [
        build_stack("plain"),
        *(build_stack("vhr", vhr={"alpha": alpha, "late": 1.0}) for alpha in (0.0, 3.0, 10.0)),
    ]
    requests = [(strategies, prompt) for strategies in sets * 3]
    expected, actual = (
        await generate_all(hf_engine, requests, TOKENS),
        await generate_all(roomy_engine, requests, TOKENS),
    )
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    assert len({tuple(get_token_ids(each)) for each in actual}) == len(sets)


async def test_answer_continues_from_the_kv_cache_of_its_probe(roomy_engine: Any) -> None:
    """The answer reads blocks that its probe has filled under the same factors, and no others."""
    prompt, (vhr,) = load_prompts(2)[1], build_stack("vhr")
    assert isinstance(vhr, VHR)
    hits = await cached_tokens(roomy_engine, prompt, vhr)
    assert hits[0] > 0
    assert hits[1] == 0


async def cached_tokens(engine: Any, prompt: Prompt, vhr: VHR) -> list[int]:
    """Return the cached prompt tokens of a request with the probe's factors, and of one with other factors."""
    found: list[int] = []
    submit = engine.client.submit

    async def submit_watched(requests: Any) -> Any:
        collectors = await submit(requests)
        get = collectors[-1].get

        async def record_cached_tokens() -> Any:
            output = await get()
            found.append(output.num_cached_tokens)
            return output

        collectors[-1].get = record_cached_tokens
        return collectors

    state, _ = await engine.probe(make_probe(prompt, vhr))
    other, _ = await engine.probe(make_probe(prompt, vhr.model_copy(update={"alpha": 4.0})))
    stronger = vhr.model_copy(update={"alpha": 5.0})
    engine.client.submit = submit_watched
    try:
        for strategy, used_state in ((vhr, state), (stronger, other)):
            await collect_answer(
                engine.generate(
                    GenerateRequest(prompt, exact_length(1), stack=(strategy,))
                    .with_state(used_state)
                    .with_strategy(strategy)
                )
            )
    finally:
        del engine.client.submit
    for each in (state, other):
        engine.free_state(each)
    return found


async def test_state_is_freed_with_its_request(roomy_engine: Any) -> None:
    requests = [(build_stack("vhr"), prompt) for prompt in load_prompts(4)]
    await generate_all(roomy_engine, requests, 4)
    assert await count_states(roomy_engine) == 0


async def test_state_may_be_freed_while_it_is_in_use(roomy_engine: Any) -> None:
    prompt, (vhr,) = load_prompts(1)[0], build_stack("vhr")
    assert isinstance(vhr, VHR)
    actual: list[list[int]] = []
    for frees_early in (False, True):
        state, _ = await roomy_engine.probe(make_probe(prompt, vhr))
        tokens = []
        async for token in roomy_engine.generate(
            GenerateRequest(prompt, exact_length(12), stack=(vhr,)).with_state(state).with_strategy(vhr)
        ):
            if frees_early:
                roomy_engine.free_state(state)
                await generate_all(roomy_engine, [(build_stack("plain"), prompt)], 1)  # changes the batch
            tokens.append(token.id)
        roomy_engine.free_state(state)
        actual.append(tokens)
    assert actual[0] == actual[1]
    assert await count_states(roomy_engine) == 0
    with pytest.raises(BadRequest):
        await collect_answer(
            roomy_engine.generate(
                GenerateRequest(prompt, exact_length(1), stack=(vhr,))
                .with_state(StateHandle("gone"))
                .with_strategy(vhr)
            )
        )


async def test_cancelled_probe_leaves_nothing(roomy_engine: Any) -> None:
    (vhr,) = build_stack("vhr")
    assert isinstance(vhr, VHR)
    tasks = [asyncio.create_task(roomy_engine.probe(make_probe(prompt, vhr))) for prompt in load_prompts(8)]
    for number, task in enumerate(tasks):
        await asyncio.sleep(0.01 * number)
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, tuple):
            roomy_engine.free_state(outcome[0])
    assert await count_states(roomy_engine) == 0


async def count_states(engine: Any) -> int:
    """Return the states that the engine holds once no gang is left."""
    for _ in range(100):
        report = await engine.report()
        if not report["workers"][0]["states"] and not report["gangs"]:
            break
        await asyncio.sleep(0.05)
    return int(report["workers"][0]["states"])


async def test_probe_that_cannot_run_in_one_step_is_refused(tight_engine: Any) -> None:
    """Each of its prompts fits, but all three together do not."""
    image: ImageInput = load_prompts(1)[0].images[0]
    (vhr,) = build_stack("vhr")
    assert isinstance(vhr, VHR)
    long = Prompt.from_text("word " * 160, image)
    probe = ProbeRequest(
        {"with_image": long, "without_image": long, "again": long}, main="with_image", layerwise=True
    ).with_strategy(vhr)
    with pytest.raises(BadRequest, match="in one step"):
        await tight_engine.probe(probe)


async def test_probes_run_while_gangs_preempt_each_other(tight_engine: Any, hf_engine: Any) -> None:
    """Prompts run in chunks of 32 tokens, and probes need steps of their own."""
    mixed = [STACKS["vhr"], build_stack("plain"), STACKS["agla+vhr"], build_stack("vcd")]
    requests = [(mixed[number % 4], prompt) for number, prompt in enumerate(load_prompts(PROMPTS))]
    expected, actual = (
        await generate_all(hf_engine, requests, TOKENS),
        await generate_all(tight_engine, requests, TOKENS),
    )
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    counters = (await tight_engine.report())["counters"]
    assert counters["violations"] == 0
    assert counters["alone"] > 0


async def test_compiled_model_calls_the_taps(hf_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second engine finds the model in vLLM's cache of compiled models."""
    monkeypatch.setenv("CXX", require_program("g++", "g++"))
    stacks = [
        build_stack("plain"),
        *STACKS.values(),
        *map(build_stack, ("dola", "deco+vcd", "deco+vhr", "pai", "pai+vhr", "spin", "steer", "dola+steer+pai")),
        *(build_stack("steer", steer={"part": part, "positions": "answer"}) for part in ("attention", "feed_forward")),
    ]
    requests = [(strategies, prompt) for prompt in load_prompts(2) for strategies in stacks]
    expected = await generate_all(hf_engine, requests, TOKENS)
    for _ in range(2):
        engine = await start_engine(max_rows=8, context=256, compiled=True)
        try:
            actual = await generate_all(engine, requests, TOKENS)
        finally:
            await engine.close()
        assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]


async def test_first_token_is_sampled_from_scaled_heads(roomy_engine: Any, hf_engine: Any) -> None:
    stack = STACKS["vhr, strong"]
    logprobs = await compute_first_logprobs(roomy_engine, stack, 8)
    assert logprobs == pytest.approx(await compute_first_logprobs(hf_engine, stack, 8), abs=1e-3)
    assert logprobs != pytest.approx(await compute_first_logprobs(roomy_engine, "plain", 8), abs=1e-2)


async def test_head_scales_that_raise_fail_their_own_request_only(roomy_engine: Any) -> None:
    """The state of a description has no factors."""
    prompt, (vhr,), (vdgd,) = load_prompts(1)[0], build_stack("vhr"), build_stack("vdgd")
    described = await collect_answer(
        roomy_engine.generate(GenerateRequest(prompt, exact_length(2), updates_state=True, strategy=vdgd))
    )
    assert described.state is not None
    broken = GenerateRequest(prompt, exact_length(TOKENS), stack=(vhr,)).with_state(described.state).with_strategy(vhr)
    requests = [(STACKS["vhr"], prompt)]
    (neighbour,), failure = await asyncio.gather(
        generate_all(roomy_engine, requests, TOKENS),
        collect_answer(roomy_engine.generate(broken)),
        return_exceptions=True,
    )
    assert isinstance(failure, EngineFailed)
    assert failure.message == "Strategy 'vhr' failed: KeyError."
    roomy_engine.free_state(described.state)
    assert get_token_ids(neighbour) == get_token_ids((await generate_all(roomy_engine, requests, TOKENS))[0])
    assert await count_states(roomy_engine) == 0


async def test_usage_counts_the_probe(roomy_engine: Any, hf_engine: Any) -> None:
    actual, usage = await run_strategies(roomy_engine, "vhr", load_prompts(1)[0], exact_length(4))
    expected, _ = await run_strategies(hf_engine, "vhr", load_prompts(1)[0], exact_length(4))
    assert get_token_ids(actual) == get_token_ids(expected)
    assert usage.forward_passes == 2
    assert actual.finish.usage.changed_steps is None
