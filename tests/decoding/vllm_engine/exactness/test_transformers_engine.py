"""The tokens equal those of the transformers engine."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

PROMPTS = 24
TOKENS = 24


@pytest.mark.parametrize("names", STACKS)
async def test_strategy_equals_the_transformers_engine(names: str, roomy_engine: Any, hf_engine: Any) -> None:
    requests = [(STACKS[names], prompt) for prompt in load_prompts(PROMPTS)]
    expected, actual = (
        await generate_all(hf_engine, requests, TOKENS),
        await generate_all(roomy_engine, requests, TOKENS),
    )
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    for each, other in zip(actual, expected, strict=True):
        assert each.text == other.text
        assert each.finish.reason == other.finish.reason
        assert each.finish.usage.changed_steps == other.finish.usage.changed_steps
        passes, other_passes = (answer.finish.usage.forward_passes for answer in (each, other))
        if "lazy" in names:  # here lazy branches run at every step
            assert passes == 2 * TOKENS >= other_passes
        else:  # the transformers engine can continue from the pass of a probe
            assert passes - other_passes in (
                (0, 1) if {"avisc", "damro", "sid", "sira"} & set(re.split(r"\W+", names)) else (0,)
            )
        assert each.finish.usage.prompt_tokens == other.finish.usage.prompt_tokens


async def test_requests_with_different_parameters_equal_the_transformers_engine(
    roomy_engine: Any, hf_engine: Any
) -> None:
    """The requests share hook calls."""
    numbers = [n / PROMPTS for n in range(PROMPTS)]
    stacks = [
        build_stack("agla+vcd", vcd={"alpha": 3 * n, "beta": n}, agla={"alpha": 4 * n, "beta": n / 2}) for n in numbers
    ]
    requests = list(zip(stacks, load_prompts(PROMPTS), strict=True))
    expected = [await generate_all(hf_engine, [each], TOKENS) for each in requests]
    actual = await generate_all(roomy_engine, requests, TOKENS)
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for (each,) in expected]
