"""The same tokens as the transformers engine, and as a naive reference that recomputes everything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decoding.hf_engine.asking import FakeMatcher, stack
from tests.decoding.vllm_engine.conftest import EMBEDDED
from tests.decoding.vllm_engine.scenes import STACKS, answers, ids, prompts

PROMPTS = 24
TOKENS = 24
UNKNOWN = ("icd", "m3id", "auto", "code")  # to the reference
NAIVE_TOKENS = 12  # each costs a pass over the whole prompt for every branch


@pytest.mark.parametrize("names", STACKS)
async def test_answers_as_the_transformers_engine_does(names: str, roomy: Any, hf: Any) -> None:
    asked = [(STACKS[names], prompt) for prompt in prompts(PROMPTS)]
    expected, said = await answers(hf, asked, TOKENS), await answers(roomy, asked, TOKENS)
    assert [ids(one) for one in said] == [ids(one) for one in expected]
    for one, other in zip(said, expected, strict=True):
        assert one.text == other.text
        assert one.end.reason == other.end.reason
        assert one.end.usage.changed_steps == other.end.usage.changed_steps
        if names != "auto":  # whose branches sleep there, and stand in every step here
            assert one.end.usage.forward_passes == other.end.usage.forward_passes
        assert one.end.usage.prompt_tokens == other.end.usage.prompt_tokens


async def test_requests_with_numbers_of_their_own_answer_as_there(roomy: Any, hf: Any) -> None:
    """They share their hooks' calls."""
    numbers = [n / PROMPTS for n in range(PROMPTS)]
    stacks = [stack("agla+vcd", vcd={"alpha": 3 * n, "beta": n}, agla={"alpha": 4 * n, "beta": n / 2}) for n in numbers]
    asked = list(zip(stacks, prompts(PROMPTS), strict=True))
    expected = [await answers(hf, [one], TOKENS) for one in asked]
    said = await answers(roomy, asked, TOKENS)
    assert [ids(one) for one in said] == [ids(one) for (one,) in expected]


@pytest.fixture(scope="module")
def naive() -> Any:
    from tests.decoding.hf_engine.reference import Reference

    return Reference(EMBEDDED, FakeMatcher().relevance)


@pytest.mark.parametrize("names", [name for name in STACKS if name not in UNKNOWN])
async def test_answers_as_if_every_branch_were_recomputed_from_scratch(names: str, roomy: Any, naive: Any) -> None:
    """The reference does not know them all; what it knows covers branches with other pictures, and other texts."""
    asked = prompts(PROMPTS)
    said = await answers(roomy, [(STACKS[names], prompt) for prompt in asked], NAIVE_TOKENS)
    for one, prompt in zip(said, asked, strict=True):
        assert ids(one) == naive.decode(STACKS[names], prompt, NAIVE_TOKENS).tokens
