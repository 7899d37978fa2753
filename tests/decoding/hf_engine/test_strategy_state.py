"""Strategy states in the engine: their contents, their use and their end."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.outputs import StateHandle
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, ProbeRequest, Prompt
from decoding.strategies.vdgd import VDGD
from decoding.strategies.vhr import VHR
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, wait_until
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
