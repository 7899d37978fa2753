"""What a digest or a probe leaves in the engine, and that it goes away."""

from __future__ import annotations

import pytest
import torch

from decoding.answer import Memory
from decoding.ask import Ask, Probe, Prompt
from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.stack import collect
from decoding.strategies.vdgd import VDGD
from decoding.strategies.vhr import VHR
from tests.decoding.hf_engine.asking import exactly, prompt, stack
from tests.decoding.hf_engine.reference import Reference

N = 10


async def digested(engine: HFEngine, strategy: VDGD) -> Memory:
    memory = (await collect(engine.generate(Ask(prompt(), exactly(N), digest=strategy)))).memory
    assert memory is not None
    return memory


@pytest.mark.parametrize("reduction", ["min", "mean", "sum"])
async def test_a_digest_holds_what_all_distributions_together_would_give(
    reduction: str, either: HFEngine, reference: Reference
) -> None:
    memory = await digested(either, VDGD(reduction=reduction))  # type: ignore[arg-type]
    every = torch.stack(reference.decode((), prompt(), N).raw).log_softmax(-1)  # [N, vocab]
    kept = either._recall(memory).tensors
    expected = every.amax(0) if reduction == "min" else every.sum(0)
    torch.testing.assert_close(kept["told"].double(), expected, atol=1e-3, rtol=1e-4)
    assert kept["tokens"].tolist() == [N]
    either.forget(memory)


@pytest.mark.parametrize("late", [0.5, 1.0])
async def test_a_probe_chooses_heads_as_one_layer_after_the_other_would(
    late: float, either: HFEngine, reference: Reference
) -> None:
    vhr, asked = VHR(late=late, alpha=3.0), prompt(4)
    pair = {"seeing": asked, "blind": asked.without_pictures()}
    memory, usage = await either.probe(Probe(vhr, pair, main="seeing", layerwise=True))
    read = [reference.read(one) for one in pair.values()]
    chosen = reference.reinforced(read[0], read[1], vhr)
    factors = either._recall(memory).tensors["factors"]
    assert {(int(layer), int(head)) for layer, head in (factors != 1).nonzero()} == set(chosen)
    assert set(factors.flatten().tolist()) == {1.0, 3.0}
    assert usage.forward_passes == 2
    either.forget(memory)


async def test_a_probe_keeps_its_main_prompt_alone(either: HFEngine) -> None:
    """Not, by a view, the others that were read in the same pass."""
    (vhr,) = stack("vhr")
    pair = {"seeing": prompt(4), "blind": prompt(4).without_pictures()}
    memory, _ = await either.probe(Probe(vhr, pair, main="seeing", layerwise=True))
    kept = either._recall(memory).prefilled
    assert kept is not None
    assert all(part.untyped_storage().nbytes() == part.nbytes for both in kept.pairs for part in both)
    either.forget(memory)


async def test_pixels_are_let_go_once_they_are_read(either: HFEngine) -> None:
    answer = either.generate(Ask(prompt(), exactly(N)))
    await anext(answer)
    assert [row.request.prompts for row in either.worker.batch.rows] == [{}]
    await answer.aclose()


async def test_heads_act_on_any_prompt_and_not_only_on_the_one_that_was_probed(
    either: HFEngine, reference: Reference
) -> None:
    (vhr,) = stack("vhr")
    probed, asked = prompt(4), prompt(5, text="How many chairs are in the picture?")
    pair = {"seeing": probed, "blind": probed.without_pictures()}
    memory, _ = await either.probe(Probe(vhr, pair, main="seeing", layerwise=True))
    said = await collect(either.generate(Ask(asked, exactly(N), stack=(vhr,)).remember(vhr, memory)))
    either.forget(memory)
    assert isinstance(vhr, VHR)
    factors = reference.reinforced(*(reference.read(one) for one in pair.values()), vhr)
    tokens: list[int] = []
    for _ in range(N):
        tokens.append(int(reference.logits(reference.read(asked), tokens, factors).argmax()))
    assert [token.id for token in said.tokens] == tokens


async def test_a_memory_that_was_forgotten_is_gone(engine: HFEngine) -> None:
    vdgd = VDGD()
    memory = await digested(engine, vdgd)
    engine.forget(memory)
    engine.forget(memory)
    assert not engine._remembered
    with pytest.raises(BadRequest):
        await collect(engine.generate(Ask(prompt(), exactly(N), stack=(vdgd,)).remember(vdgd, memory)))


async def test_a_memory_may_be_forgotten_while_it_is_in_use(engine: HFEngine) -> None:
    vdgd = VDGD()
    said = []
    for _ in range(2):
        memory = await digested(engine, vdgd)
        tokens = []
        async for token in engine.generate(Ask(prompt(), exactly(N), stack=(vdgd,)).remember(vdgd, memory)):
            engine.forget(memory)
            tokens.append(token.id)
        said.append(tokens)
    assert said[0] == said[1]
    assert len(said[0]) == N


async def test_requests_with_and_without_memory_share_a_batch(engine: HFEngine) -> None:
    """A probe's main prompt is gone on from; a prompt with other factors is run anew."""
    (vhr,) = stack("vhr")
    asked = Prompt.of("Is there a cat?", *prompt(1).pictures)
    pair = {"seeing": asked, "blind": asked.without_pictures()}
    memory, _ = await engine.probe(Probe(vhr, pair, main="seeing", layerwise=True))
    ask = Ask(asked, exactly(N), stack=(vhr,)).remember(vhr, memory)
    reused = await collect(engine.generate(ask))
    assert reused.end.usage.forward_passes == N - 1
    plain = await collect(engine.generate(ask.but(stack=())))
    assert plain.end.usage.forward_passes == N
    assert plain.text == (await collect(engine.generate(Ask(asked, exactly(N))))).text
    engine.forget(memory)
