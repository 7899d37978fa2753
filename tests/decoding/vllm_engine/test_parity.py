"""The tokens equal those of the transformers engine and of a naive reference that recomputes everything."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.decoding.hf_engine.harness import FakeMatcher, build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.conftest import EMBEDDED
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

PROMPTS = 24
TOKENS = 24
UNKNOWN = ("icd", "m3id", "code", "dola, late and raw")  # not in the reference
NAIVE_TOKENS = 12  # each costs a pass over the whole prompt for every branch


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


@pytest.fixture(scope="module")
def reference() -> Any:
    from tests.decoding.hf_engine.reference import Reference

    return Reference(EMBEDDED, FakeMatcher().relevance)


@pytest.mark.parametrize("names", [name for name in STACKS if name not in UNKNOWN])
async def test_strategy_equals_the_naive_reference(names: str, roomy_engine: Any, reference: Any) -> None:
    """The strategies that the reference knows cover branches with other images and with other texts."""
    scenes = load_prompts(PROMPTS)
    actual = await generate_all(roomy_engine, [(STACKS[names], prompt) for prompt in scenes], NAIVE_TOKENS)
    for each, prompt in zip(actual, scenes, strict=True):
        assert get_token_ids(each) == reference.decode(STACKS[names], prompt, NAIVE_TOKENS).tokens


@pytest.mark.parametrize("names", ["plain", "vcd"])
async def test_biased_answer_equals_the_naive_reference(names: str, roomy_engine: Any, reference: Any) -> None:
    """A token that a strategy has left without alternatives keeps its place, so that an unsure one gets the bias."""
    (prompt,) = load_prompts(1)
    free = reference.decode(STACKS[names], prompt, NAIVE_TOKENS)
    unsure = free.tokens[min(range(NAIVE_TOKENS), key=free.logprobs.__getitem__)]
    bias = {free.tokens[5]: 0.5, unsure: -100.0}
    expected = reference.decode(STACKS[names], prompt, NAIVE_TOKENS, bias=bias)
    assert expected.tokens != free.tokens
    stop = expected.tokens[-1]
    length = expected.tokens.index(stop) + 1
    sampling = exact_length(NAIVE_TOKENS, logit_bias=tuple(bias.items()), stop_token_ids=(stop,), top_logprobs=0)
    answer, _ = await run_strategies(roomy_engine, STACKS[names], prompt, sampling)
    assert get_token_ids(answer) == expected.tokens[:length]
    assert answer.finish.reason == "stop"
    logprobs = [token.chosen.logprob for token in answer.tokens if token.chosen]
    assert logprobs == pytest.approx(expected.logprobs[: length - 1], abs=1e-3)
