"""Strategies that contrast two prompts, against formulas over logits that are recomputed from scratch at each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from torch import Tensor

from decoding.answer import Answer
from decoding.hf_engine.engine import HFEngine
from decoding.prompt import Message, Prompt
from decoding.strategies.icd import ICD
from decoding.strategies.m3id import M3ID
from decoding.strategy import Strategy
from tests.decoding.hf_engine.asking import answer, exactly, prompt
from tests.decoding.hf_engine.reference import Reference

LENGTH = 32
ASKED = prompt(seed=1)
CONFUSED = "You are a confused object detector that gives no more than a fuzzy impression of the image."


def logprobs(said: Answer) -> list[float]:
    return [token.chosen.logprob for token in said.tokens if token.chosen]


Rule = Callable[[Tensor, Tensor, int], Tensor]  # logits with and without, position from 1 -> scores


def plausible(z: Tensor) -> Tensor:
    p = z.softmax(-1)
    return p >= 0.1 * p.max()


def subtracted(z: Tensor, other: Tensor, _: int) -> Tensor:
    return (2 * z - other).where(plausible(z), -math.inf)


def informed(z: Tensor, blind: Tensor, t: int) -> Tensor:
    seeing, unseeing, g = z.log_softmax(-1), blind.log_softmax(-1), math.exp(-0.02 * t)
    return (seeing + (1 - g) / g * (seeing - unseeing)).where(plausible(z), -math.inf)


CASES: dict[str, tuple[Strategy, Prompt, Rule]] = {
    "icd": (ICD(), Prompt((Message("system", (CONFUSED,)), *ASKED.messages)), subtracted),
    "icd before the question": (ICD(place="prefix"), ASKED.with_question(f"{CONFUSED} {ASKED.question}"), subtracted),
    "m3id": (M3ID(), ASKED.without_pictures(), informed),
}


@pytest.mark.parametrize("case", CASES)
async def test_answers_as_if_both_prompts_were_recomputed_from_scratch(
    case: str, either: HFEngine, reference: Reference
) -> None:
    strategy, other, rule = CASES[case]
    said, _ = await answer(either, (strategy,), ASKED, exactly(LENGTH, top_logprobs=0))
    tokens: list[int] = []
    for token in said.tokens:
        z, z_other = (reference.logits(reference.read(one), tokens, {}) for one in (ASKED, other))
        scores = rule(z, z_other, len(tokens) + 1).log_softmax(-1)
        assert token.id == int(scores.argmax())
        assert token.chosen is not None
        assert token.chosen.logprob == pytest.approx(float(scores[token.id]), abs=2e-3)
        tokens.append(token.id)
    plain, _ = await answer(either, "plain", ASKED, exactly(LENGTH, top_logprobs=0))
    assert logprobs(said) != pytest.approx(logprobs(plain), abs=1e-3)
