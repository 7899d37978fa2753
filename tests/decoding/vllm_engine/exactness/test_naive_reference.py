"""The tokens equal those of a naive reference that recomputes everything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decoding.hf_engine.harness import FakeMatcher, exact_length, run_strategies
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


@pytest.mark.parametrize("names", ["plain", "vcd"])
async def test_biased_answer_equals_the_naive_reference(names: str, roomy_engine: Any, reference: Any) -> None:
    """A token that a strategy has left without alternatives keeps its place, so that an unsure one gets the bias."""
    (prompt,) = load_prompts(1)
    free = reference.decode(STACKS[names], prompt, TOKENS)
    unsure = free.tokens[min(range(TOKENS), key=free.logprobs.__getitem__)]
    bias = {free.tokens[5]: 0.5, unsure: -100.0}
    expected = reference.decode(STACKS[names], prompt, TOKENS, bias=bias)
    assert expected.tokens != free.tokens
    stop = expected.tokens[-1]
    length = expected.tokens.index(stop) + 1
    sampling = exact_length(TOKENS, logit_bias=tuple(bias.items()), stop_token_ids=(stop,), top_logprobs=0)
    answer, _ = await run_strategies(roomy_engine, STACKS[names], prompt, sampling)
    assert get_token_ids(answer) == expected.tokens[:length]
    assert answer.finish.reason == "stop"
    logprobs = [token.chosen.logprob for token in answer.tokens if token.chosen]
    assert logprobs == pytest.approx(expected.logprobs[: length - 1], abs=1e-3)
