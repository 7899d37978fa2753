"""`verify` against a naive loop that recomputes everything from scratch, without cache, batch or stream."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from decoding.claims.claim_extraction import Claim, find_claims
from decoding.claims.nouns import pluralize
from decoding.claims.questions import build_question
from decoding.claims.rewriting import is_well_formed, shorten_sentence
from decoding.claims.sentences import find_sentence_end
from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, ImageInput, Prompt, SamplingParams
from decoding.strategies.verify import Verify
from decoding.strategy import Strategy
from tests.decoding.hf_engine.conftest import EMBEDDED
from tests.decoding.hf_engine.harness import FakeMatcher, build_stack
from tests.decoding.hf_engine.reference import Reference

SCENES = Path(__file__).parents[4] / "embedded" / "scenes" / "images"
DESCRIBE = "Please describe this image in detail."
LENGTH = 60
SHIFTS = [(0.03, 0.03), (-0.03, -0.03)]  # right and down
# Scenes, thresholds, tries and views for which the loop goes back, cuts sentences short and drops them.
CASES = [
    (1, 0.98, 2, 0),
    (3, 0.5, 2, 1),
    (4, 0.9, 2, 2),
    (15, 0.5, 0, 0),
    (18, 0.5, 2, 1),
    (28, 0.5, 3, 2),
    (32, 0.5, 0, 0),
    (40, 0.97, 0, 2),
]

# The same at temperature 1, with seeds.
SAMPLED_CASES = [(3, 0.9, 2, 2), (3, 0.9, 2, 2**62), (7, 0.9, 2, 1), (15, 0.97, 0, 2), (28, 0.9, 2, 0)]
SEED_STEP = 0x9E3779B97F4A7C15  # between the seeds of two drafts


class NaiveVerify:
    """The rules of `verify`, on token lists, with full recomputation of every draft and every check."""

    def __init__(
        self,
        reference: Reference,
        inner: Sequence[Strategy],
        prompt: Prompt,
        verify: Verify,
        seed: int | None = None,
    ) -> None:
        self.reference = reference
        self.inner = inner
        self.prompt = prompt
        self.verify = verify
        self.tokenizer = reference.processor.tokenizer
        self.eos = self.tokenizer.eos_token_id
        self.seed = seed
        self.drafts = 0
        self.events: list[str] = []

    def run(self) -> list[int]:
        """Return the tokens of the answer, without the end token."""
        accepted: list[int] = []
        sentences: set[str] = set()
        nouns: set[str] = set()
        ruled_out: list[str] = []
        tries, rewritten, changed, repeated = self.verify.tries, False, None, []
        draft = self.generate(accepted, ruled_out)
        while True:
            text, start = self.decode(draft), len(self.decode(accepted))
            end = find_sentence_end(text, start)
            is_last = end is None
            end = len(text) if end is None else end
            sentence = text[start:end].strip()
            claims = [claim for claim in find_claims(text[:end]) if claim.start >= start]
            failed = [
                claim for claim in claims if self.compute_probability(build_question(claim)) < self.verify.threshold
            ]
            is_english = changed is None or is_well_formed(text[start:end], changed - start)
            again: list[Claim] = []
            if changed is not None and is_english:
                for number, claim in enumerate(claims):
                    if claim.end > changed:
                        others = nouns | {other.noun for other in claims[:number] + claims[number + 1 :]}
                        again = [claim] if claim.noun in others and claim not in failed else []
                        break
            rejected = [claim for claim in claims if claim in failed or claim in again]
            if ruled_out and sentence and sentence in sentences and not rejected:
                return accepted
            if is_english and not rejected:
                count = next(n for n in range(len(accepted), len(draft) + 1) if len(self.decode(draft[:n])) >= end)
                accepted = draft[:count]
                sentences.add(sentence)
                nouns |= {claim.noun for claim in claims}
                tries, rewritten, changed, repeated = self.verify.tries, False, None, []
                if is_last:
                    return accepted
                continue
            ruled_out += [form for claim in failed for form in self.list_forms(claim)]
            repeated += [form for claim in again for form in self.list_forms(claim)]
            phrases = [claim.phrase_start for claim in rejected]
            if tries and is_english:
                self.events.append("replaced")
                tries -= 1
                count = max(
                    n for n in range(len(accepted), len(draft) + 1) if len(self.decode(draft[:n])) <= phrases[0]
                )
                changed = len(self.decode(draft[:count]))
                rewritten = rewritten or not text[start:changed].strip()
                draft = self.generate(draft[:count], ruled_out + repeated)
                continue
            place = min(phrases + ([] if changed is None or is_english else [changed]))
            space = len(text[start:]) - len(text[start:].lstrip())
            shorter = shorten_sentence(text[start + space : end], place - start - space)
            named = set() if shorter is None else {claim.noun for claim in find_claims(shorter)}
            if shorter is not None and (named - nouns or (not named and shorter not in sentences)):
                self.events.append("cut")
                wanted = text[: start + space] + shorter
                same = max(n for n in range(len(wanted) + 1) if text.startswith(wanted[:n]))
                count = max(n for n in range(len(accepted), len(draft) + 1) if len(self.decode(draft[:n])) <= same)
                rest = wanted[len(self.decode(draft[:count])) :]
                accepted = [*draft[:count], *self.tokenizer(rest, add_special_tokens=False)["input_ids"]]
                sentences.add(shorter)
                nouns |= {claim.noun for claim in find_claims(wanted) if claim.start >= start}
                tries, rewritten, changed, repeated = self.verify.tries, False, None, []
                draft = self.generate(accepted, ruled_out)
            elif self.verify.tries and not rewritten:
                self.events.append("rewritten")
                rewritten, changed = True, start
                draft = self.generate(accepted, ruled_out + repeated)
            else:
                self.events.append("dropped")
                return accepted

    def list_forms(self, claim: Claim) -> list[str]:
        both = [claim.noun, pluralize(claim.noun)]
        return [*both, *(form[0].upper() + form[1:] for form in both)]

    def generate(self, prefix: list[int], ruled_out: list[str]) -> list[int]:
        sequences = [sequence for phrase in ruled_out for sequence in self.start_ids(phrase)]
        seed = None if self.seed is None else (self.seed + self.drafts * SEED_STEP) % 2**63
        self.drafts += 1
        decoded = self.reference.decode(
            self.inner, self.prompt, LENGTH, ends=True, prefix=prefix, ruled_out=sequences, seed=seed
        )
        return [token for token in decoded.tokens if token != self.eos]

    def start_ids(self, phrase: str) -> list[list[int]]:
        found = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (phrase, f" {phrase}")]
        return [ids[:1] if len(self.tokenizer.decode(ids[:1]).strip()) >= min(3, len(phrase)) else ids for ids in found]

    @cache  # noqa: B019
    def compute_probability(self, question: str) -> float:
        (image,) = self.prompt.images
        shifts = SHIFTS[: self.verify.views] or [(0.0, 0.0)]
        odds = [self.compute_log_odds(question, shift_image(image.source, *shift)) for shift in shifts]
        return 1 / (1 + math.exp(-sum(odds) / len(odds)))

    def compute_log_odds(self, question: str, image: Image.Image) -> float:
        z = self.compute_logits(Prompt.from_text(question, ImageInput(image)))
        p = z.double().softmax(-1)
        yes, no = (
            sum(float(p[ids].sum()) for ids in map(self.first_ids, words)) for words in (("Yes", "yes"), ("No", "no"))
        )
        if not yes or not no:  # vcd has cut one of them off
            return 10.0 if yes else -10.0
        return math.log(yes / no)

    def compute_logits(self, prompt: Prompt) -> torch.Tensor:
        if not self.inner:
            return self.reference.logits(self.reference.encode(prompt), [], {})
        decoded = self.reference.decode(self.inner, prompt, 1)
        return decoded.scores[0]

    def first_ids(self, word: str) -> list[int]:
        found = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
        return sorted({ids[0] if self.tokenizer.decode(ids[:1]).strip() else ids[1] for ids in found})

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def shift_image(image: Image.Image, right: float, down: float) -> Image.Image:
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    shifted = np.full_like(pixels, (122, 116, 104))
    for row in range(height):
        for column in range(width):
            y, x = row - round(down * height), column - round(right * width)
            if 0 <= y < height and 0 <= x < width:
                shifted[row, column] = pixels[y, x]
    return Image.fromarray(shifted)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(EMBEDDED, FakeMatcher().relevance)


def load_scene(number: int) -> Prompt:
    with Image.open(SCENES / f"{number:012}.png") as image:
        return Prompt.from_text(DESCRIBE, ImageInput(image.convert("RGB")))


async def run_verify(engine: HFEngine, stack: Sequence[Strategy], prompt: Prompt, **sampling: Any) -> Answer:
    async with StrategyRunner(stack, engine) as runner:
        request = GenerateRequest(prompt, SamplingParams(max_tokens=LENGTH, **sampling))
        return await collect_answer(runner.stream(await runner.resolve(request)))


@pytest.mark.parametrize(("number", "threshold", "tries", "views"), CASES)
async def test_answer_equals_recomputation(
    number: int, threshold: float, tries: int, views: int, embedded: HFEngine, reference: Reference
) -> None:
    strategy = Verify(threshold=threshold, tries=tries, views=views)
    naive = NaiveVerify(reference, (), load_scene(number), strategy)
    expected = naive.decode(naive.run())
    alone = await run_verify(embedded, [strategy], load_scene(number))
    assert alone.text == expected
    others = [run_verify(embedded, build_stack("vcd"), load_scene(other)) for other in (11, 12, 13)]
    joined, *_ = await asyncio.gather(run_verify(embedded, [strategy], load_scene(number)), *others)
    assert joined.text == expected


@pytest.mark.parametrize(("number", "threshold", "tries", "seed"), SAMPLED_CASES)
@pytest.mark.parametrize("inner", ["", "vcd"])
async def test_sampled_answer_equals_recomputation(
    inner: str, number: int, threshold: float, tries: int, seed: int, embedded: HFEngine, reference: Reference
) -> None:
    strategy, stack = Verify(threshold=threshold, tries=tries), build_stack(inner) if inner else ()
    naive = NaiveVerify(reference, stack, load_scene(number), strategy, seed)
    expected = naive.decode(naive.run())
    if not inner:
        assert naive.events
    alone = await run_verify(embedded, [strategy, *stack], load_scene(number), temperature=1.0, seed=seed)
    assert alone.text == expected
    others = [run_verify(embedded, build_stack("vcd"), load_scene(other)) for other in (11, 12)]
    again = run_verify(embedded, [strategy, *stack], load_scene(number), temperature=1.0, seed=seed)
    joined, *_ = await asyncio.gather(again, *others)
    assert joined.text == expected


@pytest.mark.parametrize("inner", ["vcd", "vhr"])
async def test_drafts_and_checks_go_through_the_inner_strategy(
    inner: str, embedded: HFEngine, reference: Reference
) -> None:
    strategy, stack = Verify(threshold=0.9, tries=2), build_stack(inner)
    naive = NaiveVerify(reference, stack, load_scene(3), strategy)
    expected = naive.decode(naive.run())
    assert (await run_verify(embedded, [strategy, *stack], load_scene(3))).text == expected


def test_the_cases_go_back_cut_and_drop(reference: Reference) -> None:
    events: list[str] = []
    for number, threshold, tries, views in CASES:
        strategy = Verify(threshold=threshold, tries=tries, views=views)
        naive = NaiveVerify(reference, (), load_scene(number), strategy)
        naive.run()
        events += naive.events
    assert {"replaced", "cut", "rewritten", "dropped"} <= set(events)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_threshold_of_0_is_the_plain_answer(temperature: float, embedded: HFEngine) -> None:
    plain = await run_verify(embedded, build_stack("plain"), load_scene(2), temperature=temperature, seed=5)
    same = await run_verify(embedded, [Verify(threshold=0.0)], load_scene(2), temperature=temperature, seed=5)
    assert [token.id for token in same.tokens if token.id >= 0] == [token.id for token in plain.tokens]
    assert same.finish.usage.completion_tokens == plain.finish.usage.completion_tokens
    assert same.finish.usage.changed_steps == plain.finish.usage.changed_steps == 0


async def test_a_sampled_answer_can_be_reproduced(embedded: HFEngine) -> None:
    first, second = [
        await run_verify(embedded, [Verify(threshold=0.9)], load_scene(3), temperature=1.0, seed=11) for _ in range(2)
    ]
    assert first.text == second.text


STOPS = [".\n", ". \n", ". A fork", " a sports ball zzz"]  # they begin in the answers, and do not occur in them


@pytest.mark.parametrize("stop", STOPS)
async def test_a_stop_string_that_does_not_occur_changes_nothing(stop: str, embedded: HFEngine) -> None:
    for number in (1, 4, 18):
        plain = await run_verify(embedded, [Verify()], load_scene(number))
        stopped = await run_verify(embedded, [Verify()], load_scene(number), stop=(stop,))
        if stop in plain.text:
            assert stopped.text == plain.text[: plain.text.index(stop)]
            continue
        assert stopped.text == plain.text
        assert list_actions(stopped) == list_actions(plain)
        assert [token.id for token in stopped.tokens] == [token.id for token in plain.tokens]


@pytest.mark.parametrize("number", [3, 4, 28])
async def test_a_stop_string_cuts_the_answer(number: int, embedded: HFEngine) -> None:
    whole = await run_verify(embedded, [Verify()], load_scene(number))
    end = find_sentence_end(whole.text)
    assert end is not None
    for stop in (whole.text[end - 3 : end + 2], " in a", "."):
        answer = await run_verify(embedded, [Verify()], load_scene(number), stop=(stop,))
        assert answer.text == whole.text[: whole.text.find(stop) if stop in whole.text else None]
        assert answer.finish.reason == "stop"
        ends = [claim.end for token in answer.tokens for claim in token.claims if claim.end is not None]
        assert max(ends, default=0) <= len(answer.text)


def list_actions(answer: Answer) -> list[tuple[str, str | None]]:
    return [(claim.text, claim.action) for token in answer.tokens for claim in token.claims]
