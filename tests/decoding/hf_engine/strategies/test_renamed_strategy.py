"""A subclass of a strategy under another name decodes like its base class."""

from __future__ import annotations

import pytest

from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.strategies.attention.vhr import VHR
from decoding.strategies.dola import DoLa
from decoding.strategies.image_tokens.sid import SID
from decoding.strategies.m3id import M3ID
from decoding.strategies.vcd import VCD
from decoding.strategies.vdgd import VDGD
from decoding.strategy import Strategy
from tests.decoding.hf_engine.harness import exact_length, make_prompt, run_strategies

BASES: dict[type[Strategy], dict[str, int]] = {
    VCD: {},  # a branch
    SID: {},  # a probe, a state and a branch without image tokens
    VHR: {},  # a layer-wise probe and head scales
    VDGD: {"description_tokens": 6},  # a state from generated tokens
    DoLa: {},  # early exits
    M3ID: {"lazy": True},  # lazy branches
}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
async def test_renamed_strategy_decodes_like_its_base(base: type[Strategy], engine: HFEngine) -> None:
    renamed = type("Renamed", (base,), {"name": "renamed", "__module__": __name__})
    parameters = BASES[base]
    expected, _ = await run_strategies(engine, (base(**parameters),), make_prompt(), exact_length(8, top_logprobs=2))
    found, _ = await run_strategies(engine, (renamed(**parameters),), make_prompt(), exact_length(8, top_logprobs=2))
    assert list_logprobs(found) == pytest.approx(list_logprobs(expected), abs=1e-5)


def list_logprobs(answer: Answer) -> dict[tuple[int, int], float]:
    """Return (step, token id) -> log-probability."""
    return {(step, top.id): top.logprob for step, token in enumerate(answer.tokens) for top in token.top}


async def test_renamed_strategy_composes_with_its_base(engine: HFEngine) -> None:
    """Their branches have the same local name."""
    renamed = type("Renamed", (VCD,), {"name": "renamed", "__module__": __name__})
    both, _ = await run_strategies(engine, (renamed(noise_seed=3), VCD()), make_prompt(), exact_length(4))
    once, _ = await run_strategies(engine, (VCD(),), make_prompt(), exact_length(4))
    assert both.finish.usage.forward_passes == once.finish.usage.forward_passes * 3 / 2
