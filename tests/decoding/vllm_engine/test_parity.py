"""The same tokens as the transformers engine, and as a naive reference that recomputes everything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decoding.vllm_engine.scenes import STACKS, answers, ids, prompts

PROMPTS = 24
TOKENS = 24


@pytest.mark.parametrize("names", STACKS)
async def test_answers_as_the_transformers_engine_does(names: str, roomy: Any, hf: Any) -> None:
    asked = [(STACKS[names], prompt) for prompt in prompts(PROMPTS)]
    expected, said = await answers(hf, asked, TOKENS), await answers(roomy, asked, TOKENS)
    assert [ids(one) for one in said] == [ids(one) for one in expected]
    for one, other in zip(said, expected, strict=True):
        assert one.text == other.text
        assert one.end.reason == other.end.reason
        assert one.end.usage.changed_steps == other.end.usage.changed_steps
        assert one.end.usage.forward_passes == other.end.usage.forward_passes
        assert one.end.usage.prompt_tokens == other.end.usage.prompt_tokens
