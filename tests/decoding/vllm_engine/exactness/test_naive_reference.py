"""The tokens equal those of a naive reference that recomputes everything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decoding.hf_engine.harness import FakeMatcher
from tests.decoding.vllm_engine.conftest import EMBEDDED
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

PROMPTS = 12
TOKENS = 12  # each costs a pass over the whole prompt for every branch
UNKNOWN = ("icd", "m3id", "code", "dola, late and raw")  # not in the reference


@pytest.fixture(scope="module")
def reference() -> Any:
    from tests.decoding.hf_engine.reference import Reference

    return Reference(EMBEDDED, FakeMatcher().relevance)


@pytest.mark.parametrize("names", [name for name in STACKS if name not in UNKNOWN])
async def test_strategy_equals_the_naive_reference(names: str, roomy_engine: Any, reference: Any) -> None:
    """The strategies that the reference knows cover branches with other images and with other texts."""
    scenes = load_prompts(PROMPTS)
    actual = await generate_all(roomy_engine, [(STACKS[names], prompt) for prompt in scenes], TOKENS)
    for each, prompt in zip(actual, scenes, strict=True):
        assert get_token_ids(each) == reference.decode(STACKS[names], prompt, TOKENS).tokens
