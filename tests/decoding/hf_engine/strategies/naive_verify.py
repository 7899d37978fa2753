"""The rules of `verify` and of `check`, with full recomputation: no cache, no batch, no stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image

from decoding.claims.claim_extraction import Claim, find_claims
from decoding.claims.nouns import pluralize
from decoding.claims.questions import build_question
from decoding.claims.rewriting import is_grammatical, shorten_sentence
from decoding.claims.sentences import find_sentence_end
from decoding.requests import ImageInput, Prompt, SamplingParams
from decoding.strategies.verify import Verify
from decoding.strategy import Strategy
from tests.decoding.hf_engine.reference import Reference

LENGTH = 60
GREEDY = SamplingParams(max_tokens=LENGTH)
VIEWS = [0.03, 0.0, -0.03]  # shifts to the right and down
SURE = 5.0  # mean log-odds that need no further view
SEED_STEP = 0x9E3779B97F4A7C15  # between the seeds of two drafts

ReportedClaim = tuple[str, str | None, float]  # phrase, action and probability


class NaiveCheck:
    """Probabilities of claims: each question about each view is a prompt of its own."""

    def __init__(
        self, reference: Reference, inner: Sequence[Strategy], prompt: Prompt, views: int, debias: float = 0.0
    ) -> None:
        self.reference = reference
        self.inner = inner
        self.prompt = prompt
        self.views = views
        self.debias = debias
        self.tokenizer = reference.processor.tokenizer

    @cache  # noqa: B019
    def compute_probability(self, question: str) -> float:
        (image,) = self.prompt.images
        odds: list[float] = []
        for shift in VIEWS[: self.views] or [0.0]:
            if not odds or abs(sum(odds) / len(odds)) < SURE:
                odds.append(self.compute_log_odds(question, shift_image(image.source, shift, shift)))
        blind = self.compute_log_odds(question) if self.debias else 0.0
        return 1 / (1 + math.exp(self.debias * blind - sum(odds) / len(odds)))

    def compute_log_odds(self, question: str, *images: Image.Image) -> float:
        z = self.compute_logits(Prompt.from_text(question, *map(ImageInput, images)))
        p = z.double().softmax(-1)
        yes, no = (
            sum(float(p[ids].sum()) for ids in map(self.first_ids, words)) for words in (("Yes", "yes"), ("No", "no"))
        )
        if not yes or not no:
            return 10.0 * (bool(yes) - bool(no))
        return min(10.0, max(-10.0, math.log(yes) - math.log(no)))

    def compute_logits(self, prompt: Prompt) -> torch.Tensor:
        if not self.inner or not prompt.images:
            return self.reference.logits(self.reference.encode(prompt), [], {})
        inner = [each.model_copy(update={"beta": 0.0} if hasattr(each, "beta") else {}) for each in self.inner]
        decoded = self.reference.decode(inner, prompt, 1)
        return decoded.scores[0]

    def first_ids(self, word: str) -> list[int]:
        found = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
        return sorted({ids[0] if self.tokenizer.decode(ids[:1]).strip() else ids[1] for ids in found})

    def list_claims(self, text: str) -> list[tuple[str, int, int, float]]:
        """Return phrase, offsets and probability of each claim of a text, sentence by sentence."""
        claims: list[tuple[str, int, int, float]] = []
        start, end = 0, find_sentence_end(text)
        while start < len(text):
            stop = len(text) if end is None else end
            claims += [
                (claim.text, claim.start, claim.end, self.compute_probability(build_question(claim)))
                for claim in find_claims(text[:stop])
                if claim.start >= start
            ]
            start, end = stop, find_sentence_end(text, stop)
        return claims


class NaiveVerify(NaiveCheck):
    """The rules of `verify`, on token lists, with full recomputation of every draft."""

    def __init__(
        self,
        reference: Reference,
        inner: Sequence[Strategy],
        prompt: Prompt,
        verify: Verify,
        sampling: SamplingParams = GREEDY,
    ) -> None:
        super().__init__(reference, inner, prompt, verify.views, verify.debias)
        self.verify = verify
        self.sampling = sampling
        self.eos = self.tokenizer.eos_token_id
        self.drafts = 0
        self.events: list[str] = []
        self.claims: list[ReportedClaim] = []
        self.answer: list[int] = []  # for the caller

    def run(self) -> list[int]:
        """Return the tokens of the answer, without the end token."""
        accepted: list[int] = []
        sentences: set[str] = set()
        nouns: set[str] = set()
        ruled_out: list[str] = []
        tries, rewritten, changed, repeated, cut = self.verify.tries, False, None, list[str](), list[Claim]()
        extra = 0  # tokens of added texts, beside the one that each counts as
        draft = self.generate(accepted, ruled_out)
        while True:
            text, start = self.decode(draft), len(self.decode(accepted))
            end = find_sentence_end(text, start)
            is_last = end is None
            end = len(text) if end is None else end
            sentence = text[start:end].strip()
            claims = [claim for claim in find_claims(text[:end]) if claim.start >= start]
            failed = [claim for claim in claims if self.fails(claim)]
            is_sentence_grammatical = changed is None or is_grammatical(text[start:end], changed - start)
            again: list[Claim] = []
            if changed is not None and is_sentence_grammatical:
                named, is_first = set[str](), True
                for claim in claims:
                    if claim.end > changed:
                        if claim.noun in named or (is_first and claim.noun in nouns):
                            again = [claim]
                            break
                        is_first = False
                    named.add(claim.noun)
            rejected = [claim for claim in claims if claim in failed or claim in again]
            may_end = len(accepted) - extra >= self.sampling.min_tokens
            if ruled_out and sentence and sentence in sentences and not rejected and may_end:
                self.report(cut, "dropped")
                return accepted
            phrases = [claim.phrase_start for claim in rejected]
            place = min([*phrases, *([] if changed is None or is_sentence_grammatical else [changed])], default=end)
            space = len(text[start:]) - len(text[start:].lstrip())
            shorter = shorten_sentence(text[start + space : end], place - start - space)
            named = set() if shorter is None else {claim.noun for claim in find_claims(shorter)}
            if shorter is not None and not (named - nouns or (not named and shorter not in sentences)):
                shorter = None
            is_accepted = is_sentence_grammatical and not rejected
            goes_back = not is_accepted and is_sentence_grammatical and tries > 0
            is_stuck = not is_accepted and not goes_back and shorter is None and (not self.verify.tries or rewritten)
            if is_accepted or (is_stuck and not may_end):
                self.report(cut, "dropped" if is_stuck and not sentence else "replaced")
                self.report(claims, "kept")
                count = next(n for n in range(len(accepted), len(draft) + 1) if len(self.decode(draft[:n])) >= end)
                accepted = draft[:count]
                sentences.add(sentence)
                nouns |= {claim.noun for claim in claims}
                tries, rewritten, changed, repeated, cut = self.verify.tries, False, None, [], []
                if is_last:
                    return accepted
                continue
            cut += [claim for claim in rejected if claim not in cut]
            if is_stuck:
                self.events.append("dropped")
                self.report(cut, "dropped")
                return accepted
            ruled_out += [form for claim in failed for form in self.list_forms(claim)]
            repeated += [form for claim in again if claim not in failed for form in self.list_forms(claim)]
            if goes_back:
                self.events.append("replaced")
                tries -= 1
                count = max(
                    n for n in range(len(accepted), len(draft) + 1) if len(self.decode(draft[:n])) <= phrases[0]
                )
                changed = len(self.decode(draft[:count]))
                rewritten = rewritten or not text[start:changed].strip()
                draft = self.generate(draft[:count], ruled_out + repeated)
            elif shorter is not None:
                self.events.append("cut")
                wanted = text[: start + space] + shorter
                same = max(n for n in range(len(wanted) + 1) if text.startswith(wanted[:n]))
                count = max(n for n in range(len(accepted), len(draft) + 1) if len(self.decode(draft[:n])) <= same)
                rest = wanted[len(self.decode(draft[:count])) :]
                accepted = [*draft[:count], *self.tokenizer(rest, add_special_tokens=False)["input_ids"]]
                extra += len(accepted) - count - 1
                sentences.add(shorter)
                kept = [claim for claim in find_claims(wanted) if claim.start >= start]
                nouns |= {claim.noun for claim in kept}
                self.report([claim for claim in cut if claim.phrase_start < place], "replaced")
                self.report(kept, "kept")
                self.report([claim for claim in cut if claim.phrase_start >= place], "dropped")
                tries, rewritten, changed, repeated, cut = self.verify.tries, False, None, [], []
                draft = self.generate(accepted, ruled_out)
            else:
                self.events.append("rewritten")
                rewritten, changed = True, start
                draft = self.generate(accepted, ruled_out + repeated)

    def fails(self, claim: Claim) -> bool:
        return self.compute_probability(build_question(claim)) < self.verify.threshold

    def report(self, claims: Sequence[Claim], action: str) -> None:
        self.claims += [(claim.text, action, self.compute_probability(build_question(claim))) for claim in claims]

    def list_forms(self, claim: Claim) -> list[str]:
        both = [claim.noun, pluralize(claim.noun)]
        return [*both, *(form[0].upper() + form[1:] for form in both)]

    def generate(self, prefix: list[int], ruled_out: list[str]) -> list[int]:
        sequences = [sequence for phrase in ruled_out for sequence in self.start_ids(phrase)]
        sampling = self.sampling
        seed = None if sampling.seed is None else (sampling.seed + self.drafts * SEED_STEP) % 2**63
        self.drafts += 1
        decoded = self.reference.decode(
            self.inner,
            self.prompt,
            LENGTH,
            ends=True,
            prefix=prefix,
            ruled_out=sequences,
            seed=seed,
            min_tokens=sampling.min_tokens,
            penalties=(sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty),
        )
        return [token for token in decoded.tokens if token != self.eos]

    def start_ids(self, phrase: str) -> list[list[int]]:
        found = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (phrase, f" {phrase}")]
        return [ids[:1] if len(self.tokenizer.decode(ids[:1]).strip()) >= min(3, len(phrase)) else ids for ids in found]

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
