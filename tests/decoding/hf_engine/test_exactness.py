"""The engine against a naive reference which recomputes every branch from scratch at each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from decoding.answer import Answer
from decoding.ask import MAIN
from decoding.hf_engine.cache import AlignedLayer
from decoding.hf_engine.engine import HFEngine
from tests.decoding.hf_engine.asking import answer, exactly, prompt, stack
from tests.decoding.hf_engine.reference import Reference, Told

LENGTH = 32
ASKED = prompt(seed=1)
STACKS = {
    "plain": stack("plain"),
    "truncate": stack("truncate"),
    "sharpen": stack("sharpen"),
    "vcd": stack("vcd"),
    "agla": stack("agla"),
    "vhr": stack("vhr"),
    "vdgd": stack("vdgd"),
    "vdgd by mean": stack("vdgd", vdgd={"reduction": "mean", "top_p": 0.9}),
    "pai": stack("pai"),
    "pai without guidance": stack("pai", pai={"gamma": 1.0, "alpha": 0.5, "first_layer": 0}),
    "sid": stack("sid"),
    "avisc": stack("avisc"),
    "paint": stack("paint"),
    "paint by head": stack("paint", paint={"modulation": "sensitive", "first_layer": 0}),
    "dola": stack("dola"),
    "dola high": stack("dola", dola={"bucket": "high"}),
    "deco": stack("deco"),
    "vcd+vhr": stack("vcd+vhr"),
    "agla+vhr": stack("agla+vhr"),
    "vdgd+vcd": stack("vdgd+vcd"),
    "agla+vcd": stack("agla+vcd"),
    "pai+vhr": stack("pai+vhr"),
    "dola+vcd": stack("dola+vcd"),
    "deco+pai": stack("deco+pai"),
    "vdgd+agla+vhr": stack("vdgd+agla+vhr"),
}


def same(said: Answer, told: Told) -> None:
    assert [token.id for token in said.tokens] == told.tokens
    logprobs = [token.chosen.logprob for token in said.tokens if token.chosen]
    assert logprobs == pytest.approx(told.logprobs, abs=2e-3)
    if said.end.usage.changed_steps is not None:
        changed = sum(int(raw.argmax()) != token for raw, token in zip(told.raw, told.tokens, strict=True))
        assert said.end.usage.changed_steps == changed


@pytest.fixture(scope="module")
def truth(reference: Reference) -> Callable[[str], Told]:
    """What the reference says through each stack, found once."""
    return cache(lambda names: reference.decode(STACKS[names], ASKED, LENGTH))


async def ask(engine: HFEngine, names: str) -> Answer:
    said, _ = await answer(engine, STACKS[names], ASKED, exactly(LENGTH, top_logprobs=0))
    return said


@pytest.mark.parametrize("names", STACKS)
async def test_answers_as_if_every_branch_were_recomputed_from_scratch(
    names: str, either: HFEngine, truth: Callable[[str], Told]
) -> None:
    either.worker.prefixes.clear()
    for _ in ("cold", "warm"):
        same(await ask(either, names), truth(names))


NEUTRAL = {
    "truncate": {"beta": 0},
    "sharpen": {"scale": 1, "beta": 0},
    "vcd": {"alpha": 0, "beta": 0},
    "agla": {"alpha": 0, "beta": 0},
    "vhr": {"alpha": 1},
    "sid": {"alpha": 0, "beta": 0},
    "avisc": {"alpha": 0, "beta": 0},
    "paint": {"alpha": 0, "beta": 0},
    "pai": {"alpha": 0, "gamma": 1},
    "dola": {"alpha": 0, "beta": 0},
    "deco": {"alpha": 0, "top_p": 1, "top_k": 0},
}


@pytest.mark.parametrize("name", NEUTRAL)
async def test_neutral_parameters_leave_the_answer_as_it_is(name: str, engine: HFEngine) -> None:
    neutral, _ = await answer(engine, stack(name, **{name: NEUTRAL[name]}), ASKED, exactly(LENGTH))
    assert neutral.text == (await ask(engine, "plain")).text
    assert not neutral.end.usage.changed_steps


@pytest.mark.parametrize(
    "names",
    [
        "vcd",
        "agla",
        "vhr",
        "vdgd",
        "pai",
        "pai without guidance",
        "paint",
        "paint by head",
        "sid",
        "avisc",
        "dola",
        "deco",
    ],
)
async def test_the_strategy_changes_the_answer(names: str, engine: HFEngine) -> None:
    """Otherwise the comparison above would prove nothing."""
    assert (await ask(engine, names)).text != (await ask(engine, "plain")).text


@pytest.mark.parametrize("names", ["vcd", "agla", "agla+vhr"])
async def test_a_branch_that_reads_the_main_cache_is_noticed(
    names: str, either: HFEngine, truth: Callable[[str], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code of AGLA, and VCD's until 2024, continues both branches from the main one's cache."""
    update = AlignedLayer.update

    def mutated(layer: AlignedLayer, *states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = update(layer, *states)
        rows = either.worker.batch.rows
        mains = {id(row.request): number for number, row in enumerate(rows) if row.name == MAIN}
        read = torch.tensor([mains[id(row.request)] for row in rows])
        return keys[read], values[read]

    monkeypatch.setattr(AlignedLayer, "update", mutated)
    said = await ask(either, names)
    assert said.tokens[0].id == truth(names).tokens[0]
    with pytest.raises(AssertionError):
        same(said, truth(names))
