"""The engine against a naive reference that recomputes every branch at each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.kv_cache.aligned_cache import AlignedLayer
from decoding.outputs import Answer
from decoding.requests import MAIN
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Decoded, Reference

LENGTH = 32
PROMPT = make_prompt(seed=1)
LAZY = {"lazy": True, "beta": 0.3}  # some steps of the test models have one plausible token, and some have more
STACKS = {
    "plain": build_stack("plain"),
    "truncate": build_stack("truncate"),
    "sharpen": build_stack("sharpen"),
    "vcd": build_stack("vcd"),
    "agla": build_stack("agla"),
    "vhr": build_stack("vhr"),
    "describe": build_stack("describe"),
    "describe as vdgd": build_stack("describe", describe={"style": "vdgd"}),
    "vdgd": build_stack("vdgd"),
    "vdgd by mean": build_stack("vdgd", vdgd={"reduction": "mean", "top_p": 0.9}),
    "pai": build_stack("pai"),
    "pai without guidance": build_stack("pai", pai={"gamma": 1.0, "alpha": 0.5, "first_layer": 0}),
    "sid": build_stack("sid"),
    "avisc": build_stack("avisc"),
    "avisc of a sample": build_stack("avisc", avisc={"deviation": "sample", "deviations": 0.5}),
    "ritual": build_stack("ritual"),
    "ritual, flipped": build_stack("ritual", ritual={"transformation": "horizontal_flip"}),
    "nolan": build_stack("nolan"),
    "nolan, base": build_stack("nolan", nolan={"scale": 1.0, "adaptive": False}),
    "sira": build_stack("sira"),
    "sira, early and strong": build_stack("sira", sira={"boundary": 0.0, "alpha": 2.0}),
    "damro": build_stack("damro", damro={"kept": 5}),
    "hgai": build_stack("hgai"),
    "hgai, strong": build_stack("hgai", hgai={"alpha": 2.0, "first": 0.0, "last": 1.0}),
    "iat": build_stack("iat"),
    "iat, strong": build_stack("iat", iat={"alpha": 3.0, "first": 0.0, "last": 1.0}),
    "adaiat": build_stack("adaiat", adaiat={"beta": 10}),
    "adaiat, strong": build_stack("adaiat", adaiat={"alpha": 20.0, "first": 0.0, "last": 1.0}),
    "vaf": build_stack("vaf"),
    "vaf, strong": build_stack("vaf", vaf={"enhance": 2.0, "suppress": 0.5, "first": 0.0, "last": 1.0}),
    "spin": build_stack("spin"),
    "spin, strong": build_stack("spin", spin={"kept": 0.5, "suppress": 0.0, "first": 0.5}),
    "steer": build_stack("steer", steer={"strength": 0.3}),
    "steer the answer": build_stack("steer", steer={"positions": "answer", "normalize": True, "first": 0.5}),
    "steer a feed-forward": build_stack("steer", steer={"part": "feed_forward", "normalize": True, "strength": 0.3}),
    "steer an attention": build_stack("steer", steer={"part": "attention", "strength": -0.5, "last": 0.5}),
    "fade": build_stack("fade"),
    "fade, strong": build_stack("fade", fade={"alpha": 1.0, "layer": 0.3, "positions": "answer"}),
    "fade+steer": build_stack("fade+steer", steer={"strength": 0.3, "part": "feed_forward"}),
    "vista": build_stack("vista"),
    "vista, strong": build_stack("vista", vista={"strength": 1.0, "gamma": 0.0}),
    "vcd+vista": build_stack("vcd+vista"),
    "vti": build_stack("vti"),
    "vti, strong": build_stack("vti", vti={"strength": 10.0}),
    "rudder": build_stack("rudder"),
    "rudder-add": build_stack("rudder", rudder={"adaptive": False, "pooling": "weighted", "layer": 0.4}),
    "vcd+rudder+steer": build_stack("vcd+rudder+steer", rudder={"strength": 5.0}, steer={"strength": 0.3}),
    "paint": build_stack("paint"),
    "paint by head": build_stack("paint", paint={"modulation": "sensitive", "first_layer": 0}),
    "dola": build_stack("dola"),
    "dola, official distance": build_stack("dola", dola={"divergence": "official"}),
    "dola high": build_stack("dola", dola={"bucket": "high"}),
    "deco": build_stack("deco"),
    "vcd+vhr": build_stack("vcd+vhr"),
    "agla+vhr": build_stack("agla+vhr"),
    "describe+vcd": build_stack("describe+vcd"),
    "vdgd+vcd": build_stack("vdgd+vcd"),
    "agla+vcd": build_stack("agla+vcd"),
    "pai+vhr": build_stack("pai+vhr"),
    "dola+vcd": build_stack("dola+vcd"),
    "deco+pai": build_stack("deco+pai"),
    "pai+vaf": build_stack("pai+vaf"),
    "nolan+hgai": build_stack("nolan+hgai"),
    "vhr+steer": build_stack("vhr+steer", steer={"strength": 0.3}),
    "steer+vcd": build_stack("steer+vcd", steer={"strength": 0.3, "positions": "answer"}),
    "dola+steer+pai": build_stack("dola+steer+pai", steer={"strength": 0.3}),
    "pai+spin": build_stack("pai+spin"),
    "vdgd+agla+vhr": build_stack("vdgd+agla+vhr"),
    "lazy vcd": build_stack("vcd", vcd=LAZY),
    "lazy pai": build_stack("pai", pai=LAZY),
    "lazy sid": build_stack("sid", sid=LAZY),
    "lazy avisc": build_stack("avisc", avisc=LAZY),
    "lazy agla, lazy vcd": build_stack("agla+vcd", agla=LAZY, vcd=LAZY),
    "vcd+lazy agla+vhr": build_stack("vcd+agla+vhr", agla=LAZY),
    "vdgd+lazy vcd": build_stack("vdgd+vcd", vcd=LAZY),
}


def assert_equal(answer: Answer, expected: Decoded) -> None:
    assert [token.id for token in answer.tokens] == expected.tokens
    logprobs = [token.chosen.logprob for token in answer.tokens if token.chosen]
    assert logprobs == pytest.approx(expected.logprobs, abs=2e-3)
    if answer.finish.usage.changed_steps is not None:
        changed = sum(int(raw.argmax()) != token for raw, token in zip(expected.raw, expected.tokens, strict=True))
        assert answer.finish.usage.changed_steps == changed


@pytest.fixture(scope="module")
def decode_reference(reference: Reference) -> Callable[[str], Decoded]:
    """Return a cached function from a stack to the reference's tokens."""
    return cache(lambda names: reference.decode(STACKS[names], PROMPT, LENGTH))


async def run_stack(engine: HFEngine, names: str) -> Answer:
    answer, _ = await run_strategies(engine, STACKS[names], PROMPT, exact_length(LENGTH, top_logprobs=0))
    return answer


@pytest.mark.parametrize("names", STACKS)
async def test_tokens_equal_recomputation(
    names: str, either: HFEngine, decode_reference: Callable[[str], Decoded]
) -> None:
    either.worker.prefix_cache.clear()
    for _ in ("cold", "warm"):
        assert_equal(await run_stack(either, names), decode_reference(names))


NEUTRAL = {
    "truncate": {"beta": 0},
    "sharpen": {"scale": 1, "beta": 0},
    "vcd": {"alpha": 0, "beta": 0},
    "agla": {"alpha": 0, "beta": 0},
    "vhr": {"alpha": 1},
    "describe": {"description_tokens": 0},
    "sid": {"alpha": 0, "beta": 0},
    "avisc": {"alpha": 0, "beta": 0},
    "ritual": {"alpha": 0, "beta": 0},
    "nolan": {"scale": 0},
    "sira": {"alpha": 0},
    "damro": {"alpha": 0, "beta": 0},
    "hgai": {"alpha": 0},
    "iat": {"alpha": 0},
    "adaiat": {"alpha": 0},
    "vaf": {"enhance": 1, "suppress": 1},
    "spin": {"suppress": 1},
    "steer": {"strength": 0},
    "fade": {"alpha": 0},
    "vista": {"strength": 0, "gamma": 0},
    "vti": {"strength": 0},
    "rudder": {"strength": 0},
    "paint": {"alpha": 0, "beta": 0},
    "pai": {"alpha": 0, "gamma": 1},
    "dola": {"alpha": 0, "beta": 0},
    "deco": {"alpha": 0, "top_p": 1, "top_k": 0},
}


@pytest.mark.parametrize("name", NEUTRAL)
async def test_neutral_parameters_equal_plain(name: str, engine: HFEngine) -> None:
    neutral, _ = await run_strategies(engine, build_stack(name, **{name: NEUTRAL[name]}), PROMPT, exact_length(LENGTH))
    assert neutral.text == (await run_stack(engine, "plain")).text
    assert not neutral.finish.usage.changed_steps


@pytest.mark.parametrize(
    "names",
    [
        "vcd",
        "agla",
        "vhr",
        "describe",
        "vdgd",
        "pai",
        "pai without guidance",
        "paint",
        "paint by head",
        "ritual",
        "nolan",
        "sira",
        "damro",
        "hgai",
        "vaf",
        "iat",
        "adaiat, strong",
        "spin",
        "vista",
        "vista, strong",
        "vti",
        "vti, strong",
        "rudder",
        "rudder-add",
        "fade",
        "fade, strong",
        "steer",
        "steer the answer",
        "steer a feed-forward",
        "steer an attention",
        "sid",
        "avisc",
        "dola",
        "deco",
    ],
)
async def test_the_strategy_changes_the_answer(names: str, engine: HFEngine) -> None:
    """Otherwise the comparison above would prove nothing."""
    assert (await run_stack(engine, names)).text != (await run_stack(engine, "plain")).text


@pytest.mark.parametrize("names", ["vcd", "agla", "agla+vhr"])
async def test_branch_with_the_main_cache_differs(
    names: str, either: HFEngine, decode_reference: Callable[[str], Decoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code of AGLA, and VCD's until 2024, continues both branches from the main cache."""
    update = AlignedLayer.update

    def read_main_cache(layer: AlignedLayer, *states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = update(layer, *states)
        rows = either.worker.batch.rows
        mains = {id(row.request): number for number, row in enumerate(rows) if row.name == MAIN}
        read = torch.tensor([mains[id(row.request)] for row in rows])
        return keys[read], values[read]

    monkeypatch.setattr(AlignedLayer, "update", read_main_cache)
    answer = await run_stack(either, names)
    assert answer.tokens[0].id == decode_reference(names).tokens[0]
    with pytest.raises(AssertionError):
        assert_equal(answer, decode_reference(names))
