"""Lazy branches against a reference that recomputes them at the steps that need them."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from torch import Tensor

from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.lazy_branches import LazyBranch
from decoding.logits_ops import contrast
from decoding.outputs import Answer
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, Prompt
from decoding.strategy import Step, Strategy
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Reference

LENGTH = 40
PROMPT = make_prompt(seed=1)


class LazyContrast(Strategy):
    """Contrasts with a prompt without image and with another question, where no token has probability `most`."""

    name = "lazy_contrast"
    paper = "none"
    most: float

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        other = request.prompt.with_question("Is there a cat?")
        return request.with_branch("blind", request.prompt.without_images()).with_branch("other", other)

    def needs_branches(self, raw: Tensor) -> Tensor:
        return raw.softmax(-1).amax(-1) < self.most

    def logits(self, step: Step) -> Tensor:
        if not step.branches:
            return step.scores
        return contrast(contrast(step.scores, step.branches["blind"], 1.0), step.branches["other"], 0.5)


class ReferenceLazyBranches:
    def __init__(self, reference: Reference, most: float, prompt: Prompt) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.branch_steps = 0
        prompts = prompt, prompt.without_images(), prompt.with_question("Is there a cat?")
        main, blind, other = (reference.encode(one) for one in prompts)
        for _ in range(LENGTH):
            z = reference.logits(main, self.tokens, {})
            if z.softmax(-1).max() < most:
                self.branch_steps += 1
                once = 2 * z - reference.logits(blind, self.tokens, {})
                z = once + 0.5 * (once - reference.logits(other, self.tokens, {}))
            self.tokens.append(int(z.argmax()))
            self.logprobs.append(float(z.log_softmax(-1).max()))


def find_threshold(reference: Reference) -> float:
    """Return a probability that about half of the steps stay below."""
    decoded = reference.decode((), PROMPT, LENGTH)
    return sorted(float(raw.softmax(-1).max()) for raw in decoded.raw)[LENGTH // 2]


def get_logprobs(answer: Answer) -> list[float]:
    return [token.chosen.logprob for token in answer.tokens if token.chosen]


async def test_lazy_branches_equal_recomputation(either: HFEngine, reference: Reference) -> None:
    most = find_threshold(reference)
    naive = ReferenceLazyBranches(reference, most, PROMPT)
    answer, _ = await run_strategies(either, (LazyContrast(most=most),), PROMPT, exact_length(LENGTH, top_logprobs=0))
    assert [token.id for token in answer.tokens] == naive.tokens
    assert get_logprobs(answer) == pytest.approx(naive.logprobs, abs=2e-3)
    assert 2 < naive.branch_steps < LENGTH - 2
    assert answer.finish.usage.forward_passes == LENGTH + 2 * naive.branch_steps


async def test_branch_without_the_pending_tokens_differs(
    either: HFEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = find_threshold(reference)
    naive = ReferenceLazyBranches(reference, most, PROMPT)
    extend = type(either.model).extend
    monkeypatch.setattr(
        type(either.model),
        "extend",
        lambda self, states, continuations: extend(
            self, states, [[row[-1:] for row in each] for each in continuations]
        ),
    )
    answer, _ = await run_strategies(either, (LazyContrast(most=most),), PROMPT, exact_length(LENGTH, top_logprobs=0))
    assert get_logprobs(answer) != pytest.approx(naive.logprobs, abs=2e-3)


async def test_unneeded_branches_cost_no_passes(engine: HFEngine) -> None:
    answer, _ = await run_strategies(engine, (LazyContrast(most=0),), PROMPT, exact_length(LENGTH))
    plain, _ = await run_strategies(engine, "plain", PROMPT, exact_length(LENGTH))
    assert answer.text == plain.text
    assert answer.finish.usage.forward_passes == LENGTH


async def test_lazy_branches_of_several_requests_run_together(
    either: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy_contrast = [
        (
            (LazyContrast(most=most), *build_stack("vcd")) if seed % 2 else (LazyContrast(most=most),),
            make_prompt(seed),
            exact_length(LENGTH - seed),
        )
        for seed, most in enumerate((0.3, 0.5, 0.6, 0.8, 1.0))
    ]
    cases = [
        *lazy_contrast,
        (build_stack("agla+vhr"), make_prompt(7), exact_length(LENGTH)),
        (build_stack("plain"), make_prompt(8), exact_length(LENGTH)),
    ]
    alone = [(await run_strategies(either, *one))[0] for one in cases]
    together = [answer for answer, _ in await asyncio.gather(*(run_strategies(either, *one) for one in cases))]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    passes = [[answer.finish.usage.forward_passes for answer in some] for some in (together, alone)]
    assert passes[0] == passes[1]
    assert not either.worker.batch.lazy_branches._branches  # removed with their requests


async def test_choices_run_lazy_branches_when_needed(engine: HFEngine, reference_of_tiny: Reference) -> None:
    request = GenerateRequest(PROMPT, scored_texts=("Yes", "No"))
    for most, rows in ((0.0, 1), (1.0, 3)):
        lazy_contrast = LazyContrast(most=most)
        answer = await collect_answer(
            engine.generate(lazy_contrast.prepare(request).with_strategy(lazy_contrast).replace(stack=(lazy_contrast,)))
        )
        assert answer.finish.usage.forward_passes == rows
        z = reference_of_tiny.logits(reference_of_tiny.encode(PROMPT), [], {})
        if most:
            blind, other = PROMPT.without_images(), PROMPT.with_question("Is there a cat?")
            z_blind, z_other = (
                reference_of_tiny.logits(reference_of_tiny.encode(one), [], {}) for one in (blind, other)
            )
            z = 1.5 * (2 * z - z_blind) - 0.5 * z_other
        ids = engine.model.encoder.find_first_tokens(["Yes"])["Yes"]
        assert answer.text_logprobs["Yes"] == pytest.approx(math.log(z.softmax(-1)[ids].sum()), abs=2e-3)


async def test_failing_needs_branches_fails_only_its_request(engine: HFEngine, captured_logs: None) -> None:
    class FailingLazy(LazyContrast):
        name = "failing_lazy"

        def needs_branches(self, raw: Tensor) -> Tensor:
            raise ZeroDivisionError

        def prepare(self, request: GenerateRequest) -> GenerateRequest:
            return request.with_branch("blind", request.prompt.without_images())

    failing_lazy = (FailingLazy(most=1),)
    results = await asyncio.gather(
        run_strategies(engine, "plain", PROMPT, exact_length(6)),
        run_strategies(engine, failing_lazy, PROMPT, exact_length(6)),
        return_exceptions=True,
    )
    assert isinstance(results[1], Exception)
    assert not isinstance(results[0], BaseException)
    assert len(results[0][0].tokens) == 6


def test_first_run_of_a_branch_equals_extending_its_prompt(engine: HFEngine) -> None:
    encoded = engine.model.encoder.encode(PROMPT)
    with torch.inference_mode():
        (whole,) = engine.model.prefill([encoded.with_tokens([7, 8, 9])])
        (prompt_alone,) = engine.model.prefill([encoded])
        ((extended,),) = engine.model.extend([prompt_alone], [[[7, 8, 9]]])
    assert whole.next_position == extended.next_position == len(encoded) + 3
    torch.testing.assert_close(whole.logits, extended.logits, atol=1e-3, rtol=0)
    assert LazyBranch(encoded).pending == []
