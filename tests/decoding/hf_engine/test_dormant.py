"""Branches that sleep, against a reference which recomputes them from scratch at the steps that need them."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from torch import Tensor

from decoding.answer import Answer
from decoding.ask import Ask, Prompt
from decoding.hf_engine.dormant import Sleeper
from decoding.hf_engine.engine import HFEngine
from decoding.stack import collect
from decoding.strategy import Step, Strategy
from decoding.tensors import contrast
from tests.decoding.hf_engine.asking import answer, exactly, prompt, stack
from tests.decoding.hf_engine.reference import Reference

LENGTH = 40
ASKED = prompt(seed=1)


class Drowsy(Strategy):
    """Subtracts what is said without a picture and by another question, where no token has a probability of `most`."""

    name = "drowsy"
    paper = "none"
    most: float

    def prepare(self, ask: Ask) -> Ask:
        other = ask.prompt.with_question("Is there a cat?")
        return ask.branch(self, "blind", ask.prompt.without_pictures()).branch(self, "other", other)

    def wakes(self, raw: Tensor) -> Tensor:
        return raw.softmax(-1).amax(-1) < self.most

    def logits(self, step: Step) -> Tensor:
        if not step.branches:
            return step.scores
        return contrast(contrast(step.scores, step.branches["drowsy/blind"], 1.0), step.branches["drowsy/other"], 0.5)


class Naive:
    def __init__(self, reference: Reference, most: float, asked: Prompt) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.woken = 0
        prompts = asked, asked.without_pictures(), asked.with_question("Is there a cat?")
        main, blind, other = (reference.read(one) for one in prompts)
        for _ in range(LENGTH):
            z = reference.logits(main, self.tokens, {})
            if z.softmax(-1).max() < most:
                self.woken += 1
                once = 2 * z - reference.logits(blind, self.tokens, {})
                z = once + 0.5 * (once - reference.logits(other, self.tokens, {}))
            self.tokens.append(int(z.argmax()))
            self.logprobs.append(float(z.log_softmax(-1).max()))


def threshold(reference: Reference) -> float:
    """Which about half of the steps stay below."""
    told = reference.decode((), ASKED, LENGTH)
    return sorted(float(raw.softmax(-1).max()) for raw in told.raw)[LENGTH // 2]


def told(said: Answer) -> list[float]:
    return [token.chosen.logprob for token in said.tokens if token.chosen]


async def test_answers_as_if_the_branches_it_needs_were_recomputed_from_scratch(
    either: HFEngine, reference: Reference
) -> None:
    most = threshold(reference)
    naive = Naive(reference, most, ASKED)
    said, _ = await answer(either, (Drowsy(most=most),), ASKED, exactly(LENGTH, top_logprobs=0))
    assert [token.id for token in said.tokens] == naive.tokens
    assert told(said) == pytest.approx(naive.logprobs, abs=2e-3)
    assert 2 < naive.woken < LENGTH - 2
    assert said.end.usage.forward_passes == LENGTH + 2 * naive.woken


async def test_a_branch_that_misses_what_was_said_is_noticed(
    either: HFEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = threshold(reference)
    naive = Naive(reference, most, ASKED)
    extend = type(either.model).extend
    monkeypatch.setattr(
        type(either.model), "extend", lambda self, caches, tokens: extend(self, caches, [row[-1:] for row in tokens])
    )
    said, _ = await answer(either, (Drowsy(most=most),), ASKED, exactly(LENGTH, top_logprobs=0))
    assert told(said) != pytest.approx(naive.logprobs, abs=2e-3)


async def test_branches_that_always_sleep_cost_nothing(engine: HFEngine) -> None:
    said, _ = await answer(engine, (Drowsy(most=0),), ASKED, exactly(LENGTH))
    plain, _ = await answer(engine, "plain", ASKED, exactly(LENGTH))
    assert said.text == plain.text
    assert said.end.usage.forward_passes == LENGTH


async def test_sleepers_of_several_requests_wake_together_and_change_nobodys_answer(
    either: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    drowsy = [
        ((Drowsy(most=most), *stack("vcd")) if seed % 2 else (Drowsy(most=most),), prompt(seed), exactly(LENGTH - seed))
        for seed, most in enumerate((0.3, 0.5, 0.6, 0.8, 1.0))
    ]
    asked = [*drowsy, (stack("agla+vhr"), prompt(7), exactly(LENGTH)), (stack("plain"), prompt(8), exactly(LENGTH))]
    alone = [(await answer(either, *one))[0] for one in asked]
    together = [said for said, _ in await asyncio.gather(*(answer(either, *one) for one in asked))]
    assert [said.text for said in together] == [said.text for said in alone]
    passes = [[said.end.usage.forward_passes for said in some] for some in (together, alone)]
    assert passes[0] == passes[1]
    assert not either.worker.batch.dormitory._sleepers  # they left with their requests


async def test_a_choice_wakes_them_where_it_is_needed(engine: HFEngine, reference_of_tiny: Reference) -> None:
    ask = Ask(ASKED, choices=("Yes", "No"))
    for most, rows in ((0.0, 1), (1.0, 3)):
        drowsy = Drowsy(most=most)
        said = await collect(engine.generate(drowsy.prepare(ask).but(stack=(drowsy,))))
        assert said.end.usage.forward_passes == rows
        z = reference_of_tiny.logits(reference_of_tiny.read(ASKED), [], {})
        if most:
            blind, other = ASKED.without_pictures(), ASKED.with_question("Is there a cat?")
            z_blind, z_other = (reference_of_tiny.logits(reference_of_tiny.read(one), [], {}) for one in (blind, other))
            z = 1.5 * (2 * z - z_blind) - 0.5 * z_other
        ids = engine.model.encoder.first_tokens("Yes")
        assert said.choices["Yes"] == pytest.approx(math.log(z.softmax(-1)[ids].sum()), abs=2e-3)


async def test_a_strategy_that_fails_to_decide_fails_alone(engine: HFEngine, quiet: None) -> None:
    class Restless(Drowsy):
        name = "restless"

        def wakes(self, raw: Tensor) -> Tensor:
            raise ZeroDivisionError

        def prepare(self, ask: Ask) -> Ask:
            return ask.branch(self, "blind", ask.prompt.without_pictures())

    restless = (Restless(most=1),)
    said = await asyncio.gather(
        answer(engine, "plain", ASKED, exactly(6)), answer(engine, restless, ASKED, exactly(6)), return_exceptions=True
    )
    assert isinstance(said[1], Exception)
    assert not isinstance(said[0], BaseException)
    assert len(said[0][0].tokens) == 6


def test_a_sleeper_that_has_not_started_reads_its_prompt_and_the_answer_as_one(engine: HFEngine) -> None:
    encoded = engine.model.encoder.encode(ASKED)
    with torch.inference_mode():
        (whole,) = engine.model.prefill([encoded.followed_by([7, 8, 9])])
        (prompt_alone,) = engine.model.prefill([encoded])
        (extended,) = engine.model.extend([prompt_alone], [[7, 8, 9]])
    assert whole.position == extended.position == len(encoded) + 3
    torch.testing.assert_close(whole.logits, extended.logits, atol=1e-3, rtol=0)
    assert Sleeper(encoded).waiting == []
