"""Strategy states in the engine: their contents, their use and their end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest
import torch

from decoding.errors import BadRequest, EngineFailed, StrategyFailed
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model.model import PrefillOutput
from decoding.hf_engine.strategy_state import StoredStrategyState
from decoding.hf_engine.taps.head import HeadObserver
from decoding.outputs import StateHandle
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, ProbeRequest, Prompt
from decoding.strategies.attention.vhr import VHR
from decoding.strategies.vdgd import VDGD
from decoding.text.prompt_encoder import ModelInputs
from tests.decoding.failing_strategy import FailingStrategy
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, pause_worker, wait_until
from tests.decoding.hf_engine.reference import Reference

N = 10


async def create_state(engine: HFEngine, strategy: VDGD) -> StateHandle:
    state = (
        await collect_answer(
            engine.generate(GenerateRequest(make_prompt(), exact_length(N), updates_state=True, strategy=strategy))
        )
    ).state
    assert state is not None
    return state


@pytest.mark.parametrize("reduction", ["min", "mean", "sum"])
async def test_state_equals_a_fold_over_all_logits(reduction: str, either: HFEngine, reference: Reference) -> None:
    state = await create_state(either, VDGD(reduction=reduction))  # type: ignore[arg-type]
    every = torch.stack(reference.decode((), make_prompt(), N).raw).log_softmax(-1)  # [N, vocab]
    kept = either._states[state.handle].tensors
    expected = every.amax(0) if reduction == "min" else every.sum(0)
    torch.testing.assert_close(kept["support"].double(), expected, atol=1e-3, rtol=1e-4)
    assert kept["tokens"].tolist() == [N]
    either.free_state(state)


@pytest.mark.parametrize("late", [0.5, 1.0])
async def test_layerwise_probe_equals_the_reference(late: float, either: HFEngine, reference: Reference) -> None:
    vhr, prompt = VHR(late=late, alpha=3.0), make_prompt(4)
    pair = {"with_image": prompt, "without_image": prompt.without_images()}
    state, usage = await either.probe(ProbeRequest(pair, main="with_image", layerwise=True).with_strategy(vhr))
    read = [reference.encode(one) for one in pair.values()]
    chosen = reference.choose_heads(read[0], read[1], vhr)
    factors = either._states[state.handle].tensors["factors"]
    assert {(int(layer), int(head)) for layer, head in (factors != 1).nonzero()} == set(chosen)
    assert set(factors.flatten().tolist()) == {1.0, 3.0}
    assert usage.forward_passes == 2
    either.free_state(state)


async def test_probe_stores_only_its_main_prompt(either: HFEngine) -> None:
    """A view would keep the other prompts of the pass in memory."""
    (vhr,) = build_stack("vhr")
    pair = {"with_image": make_prompt(4), "without_image": make_prompt(4).without_images()}
    state, _ = await either.probe(ProbeRequest(pair, main="with_image", layerwise=True).with_strategy(vhr))
    kept = either._states[state.handle].prefill
    assert kept is not None
    assert all(part.untyped_storage().nbytes() == part.nbytes for both in kept.key_values for part in both)
    either.free_state(state)


async def test_pixels_are_freed_with_the_request(either: HFEngine) -> None:
    answer = either.generate(GenerateRequest(make_prompt(), exact_length(N)))
    await anext(answer)
    (row,) = either.worker.batch.rows
    pixels = weakref.ref(row.request.inputs["main"].extras["pixel_values"])
    del row
    await answer.aclose()
    await wait_until(lambda: not either.worker.batch.rows)
    gc.collect()
    assert pixels() is None


async def test_head_scales_act_on_other_prompts(either: HFEngine, reference: Reference) -> None:
    (vhr,) = build_stack("vhr")
    probed, prompt = make_prompt(4), make_prompt(5, text="How many chairs are in the picture?")
    pair = {"with_image": probed, "without_image": probed.without_images()}
    state, _ = await either.probe(ProbeRequest(pair, main="with_image", layerwise=True).with_strategy(vhr))
    answer = await collect_answer(
        either.generate(GenerateRequest(prompt, exact_length(N), stack=(vhr,)).with_state(state).with_strategy(vhr))
    )
    either.free_state(state)
    assert isinstance(vhr, VHR)
    factors = reference.choose_heads(*(reference.encode(one) for one in pair.values()), vhr)
    tokens: list[int] = []
    for _ in range(N):
        tokens.append(int(reference.logits(reference.encode(prompt), tokens, factors).argmax()))
    assert [token.id for token in answer.tokens] == tokens


async def test_freed_state_is_rejected(engine: HFEngine) -> None:
    vdgd = VDGD()
    state = await create_state(engine, vdgd)
    engine.free_state(state)
    engine.free_state(state)
    assert not engine._states
    with pytest.raises(BadRequest):
        await collect_answer(
            engine.generate(
                GenerateRequest(make_prompt(), exact_length(N), stack=(vdgd,)).with_state(state).with_strategy(vdgd)
            )
        )


async def test_state_can_be_freed_while_in_use(engine: HFEngine) -> None:
    vdgd = VDGD()
    runs = []
    for _ in range(2):
        state = await create_state(engine, vdgd)
        tokens = []
        async for token in engine.generate(
            GenerateRequest(make_prompt(), exact_length(N), stack=(vdgd,)).with_state(state).with_strategy(vdgd)
        ):
            engine.free_state(state)
            tokens.append(token.id)
        runs.append(tokens)
    assert runs[0] == runs[1]
    assert len(runs[0]) == N


async def test_requests_with_and_without_state_share_a_batch(engine: HFEngine) -> None:
    """A request continues from a probe's main prompt. With other head scales it runs the prompt again."""
    (vhr,) = build_stack("vhr")
    prompt = Prompt.from_text("Is there a cat?", *make_prompt(1).images)
    pair = {"with_image": prompt, "without_image": prompt.without_images()}
    state, _ = await engine.probe(ProbeRequest(pair, main="with_image", layerwise=True).with_strategy(vhr))
    request = GenerateRequest(prompt, exact_length(N), stack=(vhr,)).with_state(state).with_strategy(vhr)
    reused = await collect_answer(engine.generate(request))
    assert reused.finish.usage.forward_passes == N - 1
    plain = await collect_answer(engine.generate(request.replace(stack=())))
    assert plain.finish.usage.forward_passes == N
    assert plain.text == (await collect_answer(engine.generate(GenerateRequest(prompt, exact_length(N))))).text
    engine.free_state(state)


async def run_together(engine: HFEngine, probes: Sequence[ProbeRequest]) -> list[StoredStrategyState | BaseException]:
    """Return the states of probes that reach the worker at one instant, or their errors."""
    async with pause_worker(engine):
        tasks = [asyncio.create_task(engine.probe(probe)) for probe in probes]
        await wait_until(lambda: engine.worker._inbox.qsize() == len(tasks))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result if isinstance(result, BaseException) else engine._states.pop(result[0].handle) for result in results]


def build_probe(name: str, seed: int) -> ProbeRequest:
    """Return the probe of a strategy for an image of its own, and for a question of another length."""
    (strategy,) = build_stack(name)
    program = strategy.run(GenerateRequest(make_prompt(seed, "Is there a cat? " * (1 + seed % 3))))
    probe = next(program)
    assert isinstance(probe, ProbeRequest)
    return probe.with_strategy(strategy)


@pytest.mark.parametrize("names", [("vhr",), ("sid", "avisc"), ("paint",), ("vhr", "sid", "paint")])
async def test_waiting_probes_share_a_pass(
    names: tuple[str, ...], engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes that capture the same share a pass, and leave the states that each leaves alone."""
    probes = [build_probe(names[seed % len(names)], seed) for seed in range(6)]
    alone = [(await run_together(engine, [probe]))[0] for probe in probes]
    passes, prefill_observed = list[int](), engine.model.prefill_observed

    def count_passes(prompts: Sequence[ModelInputs], observer: HeadObserver) -> list[PrefillOutput]:
        passes.append(len(prompts))
        return prefill_observed(prompts, observer)

    monkeypatch.setattr(engine.model, "prefill_observed", count_passes)
    together = await run_together(engine, probes)
    assert len(passes) == len({probe.capture for probe in probes})
    assert sum(passes) == sum(len(probe.prompts) for probe in probes)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, StoredStrategyState)
        assert isinstance(other, StoredStrategyState)
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(other.tensors[name], tensor)
        assert (one.prefill is None) == (other.prefill is None)
        if one.prefill is not None and other.prefill is not None:
            assert one.prefill.next_position == other.prefill.next_position
            torch.testing.assert_close(other.prefill.logits, one.prefill.logits, atol=1e-4, rtol=1e-4)


async def test_failing_probe_fails_alone(engine: HFEngine, captured_logs: None) -> None:
    vhr = build_probe("vhr", 1)
    failing = ProbeRequest(vhr.prompts, main=vhr.main, layerwise=True).with_strategy(FailingStrategy())
    results = await run_together(engine, [vhr, failing, vhr])
    assert isinstance(results[1], StrategyFailed)
    assert isinstance(results[0], StoredStrategyState)
    assert isinstance(results[2], StoredStrategyState)


async def test_probe_that_breaks_a_pass_fails_alone(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch, captured_logs: None
) -> None:
    probes, prefill_observed = [build_probe("vhr", seed) for seed in range(3)], engine.model.prefill_observed
    length = len(await engine.tokenize(probes[1].prompts[probes[1].main]))

    def fail(prompts: Sequence[ModelInputs], observer: HeadObserver) -> list[PrefillOutput]:
        if length in map(len, prompts):
            raise RuntimeError("no memory")
        return prefill_observed(prompts, observer)

    monkeypatch.setattr(engine.model, "prefill_observed", fail)
    results = await run_together(engine, probes)
    assert isinstance(results[1], EngineFailed)
    assert isinstance(results[0], StoredStrategyState)
    assert isinstance(results[2], StoredStrategyState)
