"""CODE against its formula over logits that are recomputed from scratch at each step."""

from __future__ import annotations

import math

import pytest
from torch import Tensor

from decoding.hf_engine.engine import HFEngine
from decoding.prompt import Prompt
from decoding.strategies.code import CODE
from tests.decoding.hf_engine.asking import answer, exactly, prompt
from tests.decoding.hf_engine.reference import Reference

LENGTH, DESCRIPTION = 24, 12
ASKED = prompt(seed=1)


def countered(z: Tensor, told: Tensor, a: float) -> Tensor:
    """Word by word."""
    seen, heard = z.softmax(-1).tolist(), told.softmax(-1).tolist()
    distance = sum(math.log2(abs(p - q) ** a + 1) * (p + q) for p, q in zip(seen, heard, strict=True)) / 2
    k, most = 1 - distance, max(seen)
    scores = [
        (1 + k) * one - k * other if p >= distance * most else -math.inf
        for one, other, p in zip(z.tolist(), told.tolist(), seen, strict=True)
    ]
    return z.new_tensor(scores)


async def test_answers_as_if_both_prompts_were_recomputed_from_scratch(either: HFEngine, reference: Reference) -> None:
    code = CODE(description_tokens=DESCRIPTION)
    said, spent = await answer(either, (code,), ASKED, exactly(LENGTH, top_logprobs=0))
    description = reference.decode((), ASKED.with_question(code.description_prompt), DESCRIPTION, ends=True).tokens
    text = reference.processor.tokenizer.decode(description, skip_special_tokens=True).strip()
    told = Prompt.of(f"{text}\n{ASKED.question}")
    tokens: list[int] = []
    for token in said.tokens:
        z, z_told = (reference.logits(reference.read(one), tokens, {}) for one in (ASKED, told))
        scores = countered(z, z_told, code.exponent).log_softmax(-1)
        assert token.id == int(scores.argmax())
        assert token.chosen is not None
        assert token.chosen.logprob == pytest.approx(float(scores[token.id]), abs=2e-3)
        tokens.append(token.id)
    assert spent.forward_passes == len(description)
    assert said.end.usage.forward_passes == 2 * LENGTH
    plain, _ = await answer(either, "plain", ASKED, exactly(LENGTH))
    assert said.text != plain.text
