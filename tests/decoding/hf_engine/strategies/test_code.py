"""CODE against its formula over logits that are recomputed at each step."""

from __future__ import annotations

import math

import pytest
from torch import Tensor

from decoding.hf_engine.engine import HFEngine
from decoding.prompt import Prompt
from decoding.strategies.code import CODE
from tests.decoding.hf_engine.harness import exact_length, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Reference

LENGTH, DESCRIPTION = 24, 12
PROMPT = make_prompt(seed=1)


def compute_scores(z: Tensor, described: Tensor, a: float) -> Tensor:
    """Compute the scores token by token, as the formula reads."""
    seen, unseen = z.softmax(-1).tolist(), described.softmax(-1).tolist()
    distance = sum(math.log2(abs(p - q) ** a + 1) * (p + q) for p, q in zip(seen, unseen, strict=True)) / 2
    k, most = 1 - distance, max(seen)
    scores = [
        (1 + k) * one - k * other if p >= distance * most else -math.inf
        for one, other, p in zip(z.tolist(), described.tolist(), seen, strict=True)
    ]
    return z.new_tensor(scores)


async def test_tokens_equal_recomputation(either: HFEngine, reference: Reference) -> None:
    code = CODE(description_tokens=DESCRIPTION)
    answer, prior_usage = await run_strategies(either, (code,), PROMPT, exact_length(LENGTH, top_logprobs=0))
    description = reference.decode((), PROMPT.with_question(code.description_prompt), DESCRIPTION, ends=True).tokens
    text = reference.processor.tokenizer.decode(description, skip_special_tokens=True).strip()
    described = Prompt.from_text(f"{text}\n{PROMPT.question}")
    tokens: list[int] = []
    for token in answer.tokens:
        z, z_described = (reference.logits(reference.encode(one), tokens, {}) for one in (PROMPT, described))
        scores = compute_scores(z, z_described, code.exponent).log_softmax(-1)
        assert token.id == int(scores.argmax())
        assert token.chosen is not None
        assert token.chosen.logprob == pytest.approx(float(scores[token.id]), abs=2e-3)
        tokens.append(token.id)
    assert prior_usage.forward_passes == len(description)
    assert answer.finish.usage.forward_passes == 2 * LENGTH
    plain, _ = await run_strategies(either, "plain", PROMPT, exact_length(LENGTH))
    assert answer.text != plain.text
