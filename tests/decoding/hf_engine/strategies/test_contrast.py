"""Strategies that contrast two prompts, against formulas over logits that are recomputed at each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from torch import Tensor

from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.prompt import Message, Prompt
from decoding.strategies.icd import ICD
from decoding.strategies.m3id import M3ID
from decoding.strategy import Strategy
from tests.decoding.hf_engine.harness import exact_length, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Reference

LENGTH = 32
PROMPT = make_prompt(seed=1)
CONFUSED = "You are a confused object detector that gives no more than a fuzzy impression of the image."


def logprobs(answer: Answer) -> list[float]:
    return [token.chosen.logprob for token in answer.tokens if token.chosen]


Rule = Callable[[Tensor, Tensor, int], Tensor]  # logits with and without, position from 1 -> scores


def is_plausible(z: Tensor) -> Tensor:
    p = z.softmax(-1)
    return p >= 0.1 * p.max()


def apply_icd(z: Tensor, other: Tensor, _: int) -> Tensor:
    return (2 * z - other).where(is_plausible(z), -math.inf)


def apply_m3id(z: Tensor, blind: Tensor, t: int) -> Tensor:
    seeing, unseeing, g = z.log_softmax(-1), blind.log_softmax(-1), math.exp(-0.02 * t)
    return (seeing + (1 - g) / g * (seeing - unseeing)).where(is_plausible(z), -math.inf)


CASES: dict[str, tuple[Strategy, Prompt, Rule]] = {
    "icd": (ICD(), Prompt((Message("system", (CONFUSED,)), *PROMPT.messages)), apply_icd),
    "icd before the question": (ICD(place="prefix"), PROMPT.with_question(f"{CONFUSED} {PROMPT.question}"), apply_icd),
    "m3id": (M3ID(), PROMPT.without_images(), apply_m3id),
}


@pytest.mark.parametrize("case", CASES)
async def test_tokens_equal_recomputation(case: str, either: HFEngine, reference: Reference) -> None:
    strategy, other, rule = CASES[case]
    answer, _ = await run_strategies(either, (strategy,), PROMPT, exact_length(LENGTH, top_logprobs=0))
    tokens: list[int] = []
    for token in answer.tokens:
        z, z_other = (reference.logits(reference.encode(one), tokens, {}) for one in (PROMPT, other))
        scores = rule(z, z_other, len(tokens) + 1).log_softmax(-1)
        assert token.id == int(scores.argmax())
        assert token.chosen is not None
        assert token.chosen.logprob == pytest.approx(float(scores[token.id]), abs=2e-3)
        tokens.append(token.id)
    plain, _ = await run_strategies(either, "plain", PROMPT, exact_length(LENGTH, top_logprobs=0))
    assert logprobs(answer) != pytest.approx(logprobs(plain), abs=1e-3)
