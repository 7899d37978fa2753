"""`auto` against its rule over logits that are recomputed from scratch: all views, head factors and all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from decoding.ask import Prompt
from decoding.hf_engine.engine import HFEngine
from decoding.strategies.auto import Auto
from decoding.strategies.vcd import VCD
from decoding.strategies.vhr import VHR
from tests.decoding.hf_engine.asking import answer, exactly, prompt
from tests.decoding.hf_engine.reference import Reference

LENGTH = 32
ABOUT_A_CAT = prompt(seed=1, text="Is there a cat, or any other animal, in the image?")
ABOUT_NOTHING = prompt(seed=2, text="What?")  # the matcher finds little of it


def decided(auto: Auto, z: Tensor, blind: Tensor, noisy: Tensor, local: Tensor | None) -> Tensor:
    """Word by word."""
    seen, unseen = z.log_softmax(-1).tolist(), blind.log_softmax(-1).tolist()
    glanced = noisy.log_softmax(-1).tolist()
    masked = seen if local is None else local.log_softmax(-1).tolist()
    best = max(range(len(seen)), key=seen.__getitem__)
    if seen[best] - unseen[best] >= auto.grounded:
        return z
    scores = []
    for one, with_it, without, glance, part in zip(z.tolist(), seen, unseen, glanced, masked, strict=True):
        kept = with_it >= seen[best] + math.log(auto.beta)
        extra = 0.0 if local is None else auto.local * (part - without)
        extra += auto.blind * (with_it - without) + auto.noise * (with_it - glance)
        scores.append(one + extra if kept else -math.inf)
    return z.new_tensor(scores)


@pytest.mark.parametrize("asked", [ABOUT_A_CAT, ABOUT_NOTHING], ids=["relevant", "irrelevant"])
async def test_answers_as_if_all_that_it_needs_were_recomputed_from_scratch(
    asked: Prompt, either: HFEngine, reference: Reference
) -> None:
    auto = Auto(torn=0.2, relevant=0.5, heads_by=1.5, grounded=5.0, noise=0.5, local=0.5)
    said, spent = await answer(either, (auto,), asked, exactly(LENGTH, top_logprobs=0))
    blind, local = asked.without_pictures(), asked.map_pictures(reference.mask(asked.question))
    noisy = reference.noisy(reference.read(asked), VCD())
    factors = reference.reinforced(reference.read(asked), reference.read(blind), VHR(alpha=1.5))
    is_relevant = reference.relevance(asked.pictures[0], asked.question).similarity >= 0.5
    assert is_relevant == (asked is ABOUT_A_CAT)
    tokens: list[int] = []
    woken = changed = 0
    for token in said.tokens:
        scores = z = reference.logits(reference.read(asked), tokens, factors)
        likeliest, second = z.softmax(-1).sort(descending=True).values[:2]
        if second >= auto.torn * likeliest:
            woken += 1
            z_blind = reference.logits(reference.read(blind), tokens, {})
            z_noisy = reference.logits(noisy, tokens, {})
            z_local = reference.logits(reference.read(local), tokens, {}) if is_relevant else None
            scores = decided(auto, z, z_blind, z_noisy, z_local)
            changed += not torch.equal(scores, z)
        assert token.id == int(scores.argmax())
        assert token.chosen is not None
        assert token.chosen.logprob == pytest.approx(float(scores.log_softmax(-1)[token.id]), abs=2e-3)
        tokens.append(token.id)
    assert 0 < changed <= woken < LENGTH
    assert spent.forward_passes == 2  # the probe, from which the answer goes on
    assert said.end.usage.forward_passes == LENGTH - 1 + (2 + is_relevant) * woken
