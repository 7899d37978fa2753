"""Log-probabilities of prompts are those of the transformers engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from decoding.outputs import PromptLogprobs
from decoding.pipeline.runner import StrategyRunner
from decoding.requests import GenerateRequest, Prompt
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.scenes import load_prompts

COUNT = 3
WITH_IMAGE = load_prompts(1)[0]


async def score(engine: Any, prompt: Prompt, text: str) -> PromptLogprobs:
    async with StrategyRunner(build_stack("vcd"), engine) as runner:
        return await runner.score_prompt(GenerateRequest(prompt, continued_text=text), COUNT)


@pytest.mark.parametrize("prompt", [WITH_IMAGE, WITH_IMAGE.without_images()], ids=["image", "text"])
@pytest.mark.parametrize("text", ["", "A cat sits on"])
async def test_scores_equal_those_of_the_transformers_engine(
    prompt: Prompt, text: str, hf_engine: Any, roomy_engine: Any
) -> None:
    expected = await score(hf_engine, prompt, text)
    for _ in range(2):  # the second time, the prefix of the prompt may be cached
        found = await score(roomy_engine, prompt, text)
        assert (list(found.ids), list(found.offsets)) == (list(expected.ids), list(expected.offsets))
        assert found.is_scored.tolist() == expected.is_scored.tolist()
        own, wanted, scored = found.scores, expected.scores, expected.is_scored
        np.testing.assert_allclose(own.logprobs[scored], wanted.logprobs[scored], atol=1e-3)
        np.testing.assert_allclose(own.top_logprobs[scored], wanted.top_logprobs[scored], atol=1e-3)
        assert own.top_ids[scored, 0].tolist() == wanted.top_ids[scored, 0].tolist()
