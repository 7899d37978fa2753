"""Factors on the attention heads, per request, and the probe that chooses them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from decoding.ask import Ask, Memory, Picture, Probe, Prompt
from decoding.errors import BadRequest, EngineFailed
from decoding.stack import collect
from decoding.strategies.vhr import VHR
from decoding.vllm_engine.rows import FAILED
from tests.decoding.hf_engine.asking import FakeMatcher, answer, exactly, stack
from tests.decoding.vllm_engine.conftest import EMBEDDED, started
from tests.decoding.vllm_engine.scenes import answers, ids, prompts

PROMPTS = 24
TOKENS = 24
NAIVE_PROMPTS = 6
INSIDE = {
    "vhr": stack("vhr"),
    "vhr, loud": stack("vhr", vhr={"alpha": 6.0, "late": 1.0}),
    "agla+vhr": stack("agla+vhr"),
    "vdgd+vhr": stack("vdgd+vhr"),
    "auto": stack("auto"),
}


def probe_of(prompt: Prompt, vhr: VHR) -> Probe:
    return Probe(vhr, {"seeing": prompt, "blind": prompt.without_pictures()}, main="seeing", layerwise=True)


@pytest.mark.parametrize("names", INSIDE)
async def test_answers_as_the_transformers_engine_does(names: str, roomy: Any, hf: Any) -> None:
    asked = [(INSIDE[names], prompt) for prompt in prompts(PROMPTS)]
    expected, said = await answers(hf, asked, TOKENS), await answers(roomy, asked, TOKENS)
    assert [ids(one) for one in said] == [ids(one) for one in expected]


@pytest.mark.parametrize("names", [name for name in INSIDE if name != "auto"])
async def test_answers_as_if_every_layer_were_reinforced_by_hand(names: str, roomy: Any) -> None:
    from tests.decoding.hf_engine.reference import Reference

    naive = Reference(EMBEDDED, FakeMatcher().relevance)
    asked = prompts(NAIVE_PROMPTS)
    said = await answers(roomy, [(INSIDE[names], prompt) for prompt in asked], 8)
    for one, prompt in zip(said, asked, strict=True):
        assert ids(one) == naive.decode(INSIDE[names], prompt, 8).tokens


async def test_factors_change_the_answer_of_their_own_request_alone(roomy: Any, hf: Any) -> None:
    """One prompt under three factor sets and under none, at once: what one has cached is of no use to the others."""
    prompt = prompts(1)[0]
    sets = [stack("plain"), *(stack("vhr", vhr={"alpha": alpha, "late": 1.0}) for alpha in (0.0, 3.0, 10.0))]
    asked = [(strategies, prompt) for strategies in sets * 3]
    expected, said = await answers(hf, asked, TOKENS), await answers(roomy, asked, TOKENS)
    assert [ids(one) for one in said] == [ids(one) for one in expected]
    assert len({tuple(ids(one)) for one in said}) == len(sets)


async def test_an_answer_goes_on_from_its_probe(roomy: Any) -> None:
    """From the blocks that the probe has filled under the same factors, and from nobody else's."""
    prompt, (vhr,) = prompts(2)[1], stack("vhr")
    assert isinstance(vhr, VHR)
    hits = await cached(roomy, prompt, vhr)
    assert hits[0] > 0
    assert hits[1] == 0


async def cached(engine: Any, prompt: Prompt, vhr: VHR) -> list[int]:
    """Prompt tokens that vLLM found cached: for an ask under the probe's factors, and under those of another probe."""
    found: list[int] = []
    hear = engine._hear

    async def listen(box: Any) -> Any:
        output = await hear(box)
        found.append(output.num_cached_tokens)
        return output

    memory, _ = await engine.probe(probe_of(prompt, vhr))
    other, _ = await engine.probe(probe_of(prompt, vhr.model_copy(update={"alpha": 4.0})))
    louder = vhr.model_copy(update={"alpha": 5.0})
    engine._hear = listen
    try:
        for strategy, recalled in ((vhr, memory), (louder, other)):
            await collect(engine.generate(Ask(prompt, exactly(1), stack=(strategy,)).remember(strategy, recalled)))
    finally:
        del engine._hear
    for one in (memory, other):
        engine.forget(one)
    return found


async def test_a_memory_is_gone_when_its_request_is(roomy: Any) -> None:
    asked = [(stack("vhr"), prompt) for prompt in prompts(4)]
    await answers(roomy, asked, 4)
    assert await held(roomy) == 0


async def test_a_memory_may_be_forgotten_while_it_is_in_use(roomy: Any) -> None:
    prompt, (vhr,) = prompts(1)[0], stack("vhr")
    assert isinstance(vhr, VHR)
    said: list[list[int]] = []
    for forgets in (False, True):
        memory, _ = await roomy.probe(probe_of(prompt, vhr))
        tokens = []
        async for token in roomy.generate(Ask(prompt, exactly(12), stack=(vhr,)).remember(vhr, memory)):
            if forgets:
                roomy.forget(memory)
                await answers(roomy, [(stack("plain"), prompt)], 1)  # the batch is put together anew
            tokens.append(token.id)
        roomy.forget(memory)
        said.append(tokens)
    assert said[0] == said[1]
    assert await held(roomy) == 0
    with pytest.raises(BadRequest):
        await collect(roomy.generate(Ask(prompt, exactly(1), stack=(vhr,)).remember(vhr, Memory("gone"))))


async def test_a_cancelled_probe_leaves_nothing(roomy: Any) -> None:
    (vhr,) = stack("vhr")
    assert isinstance(vhr, VHR)
    tasks = [asyncio.create_task(roomy.probe(probe_of(prompt, vhr))) for prompt in prompts(8)]
    for number, task in enumerate(tasks):
        await asyncio.sleep(0.01 * number)
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, tuple):
            roomy.forget(outcome[0])
    assert await held(roomy) == 0


async def held(engine: Any) -> int:
    """Memories that the engine holds once all that was sent has arrived."""
    for _ in range(100):
        report = await engine.report()
        if not report["worker"]["memories"] and not report["gangs"]:
            break
        await asyncio.sleep(0.05)
    return int(report["worker"]["memories"])


async def test_a_probe_that_cannot_run_in_one_step_is_refused(tight: Any) -> None:
    """None of its prompts is too long, but all three together are."""
    picture: Picture = prompts(1)[0].pictures[0]
    (vhr,) = stack("vhr")
    assert isinstance(vhr, VHR)
    long = Prompt.of("word " * 160, picture)
    probe = Probe(vhr, {"seeing": long, "blind": long, "again": long}, main="seeing", layerwise=True)
    with pytest.raises(BadRequest, match="in one step"):
        await tight.probe(probe)


async def test_probes_push_through_a_tight_engine(tight: Any, hf: Any) -> None:
    """Chunks of 32 tokens, gangs that preempt each other, and probes that want a step of their own."""
    mixed = [INSIDE["vhr"], stack("plain"), INSIDE["agla+vhr"], stack("vcd")]
    asked = [(mixed[number % 4], prompt) for number, prompt in enumerate(prompts(PROMPTS))]
    expected, said = await answers(hf, asked, TOKENS), await answers(tight, asked, TOKENS)
    assert [ids(one) for one in said] == [ids(one) for one in expected]
    counters = (await tight.report())["counters"]
    assert counters["violations"] == 0
    assert counters["alone"] > 0


async def test_compiled_code_scales_the_heads_too(hf: Any) -> None:
    """Twice: what was compiled, and what is found in vLLM's cache of compiled models."""
    asked = [(strategies, prompt) for prompt in prompts(2) for strategies in (stack("plain"), *INSIDE.values())]
    expected = await answers(hf, asked, TOKENS)
    for _ in range(2):
        engine = await started(max_rows=8, context=256, compiled=True)
        try:
            said = await answers(engine, asked, TOKENS)
        finally:
            await engine.close()
        assert [ids(one) for one in said] == [ids(one) for one in expected]


async def test_the_first_token_is_drawn_from_scaled_heads(roomy: Any, hf: Any) -> None:
    told: list[list[float]] = []
    for engine, strategies in ((roomy, INSIDE["vhr, loud"]), (hf, INSIDE["vhr, loud"]), (roomy, stack("plain"))):
        said, _ = await answer(engine, strategies, prompts(1)[0], exactly(1, top_logprobs=8))
        (token,) = said.tokens
        told.append([one.logprob for one in sorted(token.top, key=lambda one: one.id)])
    assert told[0] == pytest.approx(told[1], abs=1e-3)
    assert told[0] != pytest.approx(told[2], abs=1e-2)


async def test_a_hook_that_raises_fails_its_own_request_alone(roomy: Any) -> None:
    """There are no factors in what a description leaves."""
    prompt, (vhr,), (vdgd,) = prompts(1)[0], stack("vhr"), stack("vdgd")
    described = await collect(roomy.generate(Ask(prompt, exactly(2), digest=vdgd)))
    assert described.memory is not None
    broken = Ask(prompt, exactly(TOKENS), stack=(vhr,)).remember(vhr, described.memory)
    asked = [(INSIDE["vhr"], prompt)]
    (neighbour,), failure = await asyncio.gather(
        answers(roomy, asked, TOKENS), collect(roomy.generate(broken)), return_exceptions=True
    )
    assert isinstance(failure, EngineFailed)
    assert failure.message == FAILED
    roomy.forget(described.memory)
    assert ids(neighbour) == ids((await answers(roomy, asked, TOKENS))[0])
    assert await held(roomy) == 0


async def test_one_answer_alone(roomy: Any, hf: Any) -> None:
    said, spent = await answer(roomy, "vhr", prompts(1)[0], exactly(4))
    expected, _ = await answer(hf, "vhr", prompts(1)[0], exactly(4))
    assert ids(said) == ids(expected)
    assert spent.forward_passes == 2
    assert said.end.usage.changed_steps is None
