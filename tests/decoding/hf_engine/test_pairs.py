"""Every ordered pair of registered strategies is run, or refused for a reason that is told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.registry import build, refusal, strategies
from tests.decoding.hf_engine.asking import answer, exactly, prompt, stack
from tests.decoding.strategies.registered import NEUTRAL, REWORDS

ASKED = prompt(seed=1, text="Is there a cat in the image?")
LENGTH = 4
Said = list[tuple[int, float]]  # tokens with their log-probabilities

every_outer = pytest.mark.parametrize("outer", strategies())


def inner_ones(outer: str) -> list[str]:
    return [name for name in strategies() if name != outer]


def running(outer: str) -> list[str]:
    return [inner for inner in inner_ones(outer) if refusal(outer, inner) is None]


async def said_by(engine: HFEngine, stacks: Sequence[tuple[str, dict[str, dict[str, object]]]]) -> list[Said]:
    """Side by side, as many as the engine's queue has room for."""
    room = asyncio.Semaphore(12)

    async def one(names: str, parameters: dict[str, dict[str, object]]) -> Said:
        async with room:
            said, _ = await answer(engine, stack(names, **parameters), ASKED, exactly(LENGTH, top_logprobs=0))
        return [(token.id, token.chosen.logprob) for token in said.tokens if token.chosen]

    return await asyncio.gather(*(one(*each) for each in stacks))


@every_outer
async def test_what_is_not_refused_says_something_finite_and_the_same_again(outer: str, engine: HFEngine) -> None:
    pairs = [(f"{outer}+{inner}", {}) for inner in running(outer)]
    once, again = await said_by(engine, pairs), await said_by(engine, pairs)
    for (names, _), said, repeated in zip(pairs, once, again, strict=True):
        assert said, names
        assert all(math.isfinite(logprob) for _, logprob in said), names
        assert [token for token, _ in said] == [token for token, _ in repeated], names


@every_outer
async def test_a_neutral_strategy_inside_leaves_what_the_outer_one_says_alone(outer: str, engine: HFEngine) -> None:
    """Those that reword the question are asked another one, whatever their parameters."""
    inner = [name for name in running(outer) if name not in REWORDS]
    (alone,) = await said_by(engine, [(outer, {})])
    pairs = [(f"{outer}+{name}", {name: {**NEUTRAL[name]}}) for name in inner]
    for (names, _), said in zip(pairs, await said_by(engine, pairs), strict=True):
        assert [token for token, _ in said] == [token for token, _ in alone], names


@every_outer
def test_what_is_refused_is_refused_before_anything_runs(outer: str) -> None:
    for inner in inner_ones(outer):
        if (reason := refusal(outer, inner)) is not None:
            assert len(reason.split()) > 5
            with pytest.raises(BadRequest, match="cannot stand outside") as refused:
                build(f"{outer}+{inner}", {})
            assert reason in refused.value.message


def test_few_pairs_are_refused() -> None:
    pairs = [(outer, inner) for outer in strategies() for inner in inner_ones(outer)]
    assert sum(refusal(*pair) is not None for pair in pairs) < len(pairs) / 4
