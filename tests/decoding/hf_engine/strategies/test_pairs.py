"""Every ordered pair of registered strategies runs, or is rejected with a reason."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.registry import build, find_incompatibility, list_strategies
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, run_strategies

PROMPT = make_prompt(seed=1, text="Is there a cat in the image?")
LENGTH = 4
TokenLogprobs = list[tuple[int, float]]  # tokens with their log-probabilities

every_outer = pytest.mark.parametrize("outer", list_strategies())


def list_inner(outer: str) -> list[str]:
    return [name for name in list_strategies() if name != outer]


def list_compatible(outer: str) -> list[str]:
    return [inner for inner in list_inner(outer) if find_incompatibility(outer, inner) is None]


async def run_all(engine: HFEngine, stacks: Sequence[tuple[str, dict[str, dict[str, object]]]]) -> list[TokenLogprobs]:
    """Run stacks concurrently, as many as the engine's queue holds."""
    limit = asyncio.Semaphore(12)

    async def run_pair(names: str, parameters: dict[str, dict[str, object]]) -> TokenLogprobs:
        async with limit:
            answer, _ = await run_strategies(
                engine, build_stack(names, **parameters), PROMPT, exact_length(LENGTH, top_logprobs=0)
            )
        return [(token.id, token.chosen.logprob) for token in answer.tokens if token.chosen]

    return await asyncio.gather(*(run_pair(*each) for each in stacks))


@every_outer
async def test_compatible_pairs_give_finite_reproducible_tokens(outer: str, engine: HFEngine) -> None:
    # The weights of the model are random: it confirms nothing, and `verify` would drop each sentence.
    parameters = {"verify": {"threshold": 0.0}}
    pairs = [(f"{outer}+{inner}", parameters if "verify" in (outer, inner) else {}) for inner in list_compatible(outer)]
    once, again = await run_all(engine, pairs), await run_all(engine, pairs)
    for (names, _), tokens, repeated in zip(pairs, once, again, strict=True):
        assert tokens, names
        assert all(math.isfinite(logprob) for _, logprob in tokens), names
        assert [token for token, _ in tokens] == [token for token, _ in repeated], names


@every_outer
async def test_neutral_inner_strategy_equals_the_outer_one_alone(outer: str, engine: HFEngine) -> None:
    """VDGD changes the prompt, whatever its parameters."""
    inner = [name for name in list_compatible(outer) if name != "vdgd"]
    (alone,) = await run_all(engine, [(outer, {})])
    pairs = [(f"{outer}+{name}", {name: dict(list_strategies()[name].neutral or {})}) for name in inner]
    for (names, _), tokens in zip(pairs, await run_all(engine, pairs), strict=True):
        assert [token for token, _ in tokens] == [token for token, _ in alone], names


@every_outer
def test_incompatible_pairs_are_rejected_before_they_run(outer: str) -> None:
    for inner in list_inner(outer):
        if (reason := find_incompatibility(outer, inner)) is not None:
            assert len(reason.split()) > 5
            with pytest.raises(BadRequest, match="cannot stand outside") as refused:
                build(f"{outer}+{inner}", {})
            assert reason in refused.value.message


def test_few_pairs_are_incompatible() -> None:
    pairs = [(outer, inner) for outer in list_strategies() for inner in list_inner(outer)]
    assert sum(find_incompatibility(*pair) is not None for pair in pairs) < len(pairs) / 4
