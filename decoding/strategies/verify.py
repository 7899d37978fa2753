"""Verify: check each thing that a sentence names, and go back where the model itself does not confirm it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from copy import copy
from typing import Annotated, Any

from pydantic import Field

from decoding.claims.claim_extraction import Claim, find_claims, find_claims_after
from decoding.claims.claim_probabilities import ClaimProbabilities, count_copies
from decoding.claims.nouns import pluralize
from decoding.claims.options import DEFAULT_DEBIAS, DEFAULT_VIEWS, Debias, Language, Question, Views
from decoding.claims.questions import DEFAULT_QUESTION
from decoding.claims.rewriting import is_grammatical, shorten_sentence
from decoding.claims.sentences import completes_sentence, find_sentence_end
from decoding.drafts import DraftEffect, DraftProgram, ReadDraft, Segment, SendTokens, StartDraft, join_text
from decoding.errors import BadRequest
from decoding.outputs import NO_TOKEN, CheckedClaim, ClaimAction, FinishReason, Token
from decoding.requests import GenerateRequest
from decoding.strategy import TEXT_SIDE, Strategy
from decoding.text.stop_string_detector import StopStringDetector


class Verify(Strategy):
    """Send a sentence only when the model confirms each thing that it names.

    The answer is generated sentence by sentence. For each new claim of a sentence, the model answers "Is there a
    {claim} in the image?" about up to `views` views of the image: a slightly shifted copy, the image itself, and
    another shifted copy. The questions about one view run together, after its cached keys and values. A question is
    about the next view only while the mean of its log-odds is between -5 and 5:

        q_i = P(yes | view i) / (P(yes | view i) + P(no | view i))
        logit(p) = mean_i logit(q_i) - debias * logit(q without an image)

    A sentence whose claims all have p >= threshold is sent. Otherwise the first possible one of these steps follows:

    1. The sentence is cut before its first failed phrase, and generated again from there. This happens at most `tries`
       times, and only while the new text is grammatical.
    2. The sentence ends before that phrase, or before new text that is not grammatical. English must allow that, and
       the shorter sentence must name something new.
    3. The sentence is generated once from its beginning, unless `tries` is 0.
    4. The sentence is dropped, and the answer ends.

    Steps 1 to 3 rule out all failed phrases for the rest of the answer. Among new phrases, one that names a thing of
    the sentence again fails, too. So does the first one, if the answer has named its thing. Such a phrase is ruled out
    for this sentence only.

    Once a phrase is ruled out, the answer also ends before a sentence that it contains already. It does not end before
    `min_tokens`, or with `ignore_eos`. The failed or repeated sentence is then sent.

    A phrase is ruled out by its first token, unless that has fewer than three letters. So "traffic light" also rules
    out "traffic sign". With only its last token forbidden, the model would complete "traffic" with nonsense.

    A model that has mistaken some pixels for an object mistakes the same pixels again. Shifted pixels fall into other
    patches. The views, the threshold of 0.9 and the two tries were chosen on scenes of their own (docs/results.md).

    A sentence also ends at a stop string. What stands before it is checked, and the answer ends if that is sent.

    Answers without an image, without claims, or of one word are those of the inner strategies, token for token.

    Source: no paper. Parts of it were published. REVERSE (arXiv:2504.13169) resamples retrospectively, with trained
    confidence tokens. LogicCheckGPT (arXiv:2402.11622) sends questions back and forth. Woodpecker (arXiv:2310.16045)
    corrects by external detectors. Chain-of-verification (arXiv:2309.11495) sends questions without the draft.
    """

    name = "verify"
    paper = "none"
    neutral = {"threshold": 0.0}
    sends_claims = True

    threshold: Annotated[
        float, Field(ge=0, le=1, description="Least probability of a claim that is sent."), TEXT_SIDE
    ] = 0.9
    tries: Annotated[
        int, Field(ge=0, le=16, description="Most times that a sentence is generated again."), TEXT_SIDE
    ] = 2
    views: Views = DEFAULT_VIEWS
    debias: Debias = DEFAULT_DEBIAS
    question: Question = DEFAULT_QUESTION
    language: Language = "en"

    def count_image_copies(self) -> int:
        """Count the shifted copies that questions are about."""
        return count_copies(self.views)

    def stream(self, request: GenerateRequest) -> DraftProgram:
        """Verify the answer.

        Yields:
            Drafts, checks and accepted sentences.

        Returns:
            The finish reason.

        Raises:
            BadRequest: The request has an image and a grammar.
        """
        if not request.prompt.images:
            yield StartDraft()
            segment: Segment = yield ReadDraft(lambda _: False, send=True)
            assert segment.reason is not None, "a draft that is read to its end has a finish reason"
            return segment.reason
        if request.sampling.grammar is not None:
            message = (
                "'verify' reads English sentences, so it does not combine with response_format. Use check instead."
            )
            raise BadRequest(message, param="response_format")
        return (yield from Verification(self, request).run())


class Verification:
    """State of one answer that `Verify` checks.

    The dicts without values are sets that keep their order.

    Attributes:
        strategy: The parameters.
        sampling: Sampling parameters of the request.
        probabilities: Probabilities of the claims.
        text: Sent text of the answer.
        prefix: Token ids and added texts that the sent text consists of.
        nouns: Nouns of the claims that have been sent, in the singular.
        sentences: Sentences that have been sent, without white space at their ends.
        pending: Tokens that have been read and not sent. They begin with the pending sentence.
        finish_reason: Finish reason of the draft, once it has been read to its end; "stop" at a stop string; else None.
        ends_at_stop: Whether a stop string ends the pending sentence. Its tokens are pending, too.
        stop_detector: State after the sent text.
        pending_detector: State after the pending tokens that it has read.
        tokens_read: Number of these tokens.
        released: Characters of the pending text that it has returned, less those of sent text that were held back.
        ruled_out: Phrases that are ruled out for the rest of the answer.
        tries_left: How often the pending sentence may be generated again from a failed phrase.
        is_restarted: Whether the pending sentence was generated again from its beginning.
        regenerated_from: Offset in the answer from which the pending sentence was last generated again; None for the
            first attempt.
        ruled_out_in_sentence: Phrases that are ruled out for the pending sentence, because they repeated others.
        rejected_claims: Claims of earlier attempts at the pending sentence, which were cut off.
    """

    def __init__(self, strategy: Verify, request: GenerateRequest) -> None:
        self.strategy = strategy
        self.sampling = request.sampling
        self.probabilities = ClaimProbabilities(request.prompt, strategy.question, strategy.debias, strategy.views)
        self.text = ""
        self.prefix: list[int | str] = []
        self.nouns: set[str] = set()
        self.sentences: set[str] = set()
        self.pending: list[Token] = []
        self.finish_reason: FinishReason | None = None
        self.ends_at_stop = False
        self.stop_detector = StopStringDetector(request.sampling.stop, request.sampling.min_tokens)
        self._restart_detector()
        self.ruled_out: dict[str, None] = {}
        self._begin_sentence()

    @property
    def pending_text(self) -> str:
        """Text of the pending tokens."""
        return join_text(self.pending)

    def run(self) -> DraftProgram:
        """Verify sentence after sentence.

        Yields:
            Drafts, checks and accepted sentences.

        Returns:
            The finish reason.
        """
        yield StartDraft(ignores_stop=True)
        while True:
            end = yield from self._read_sentence()
            claims = yield from self._check(end)
            is_sentence_grammatical = self._is_grammatical(end)
            repetition = self._find_repetition(claims) if is_sentence_grammatical else None
            rejected = [claim for claim in claims if self._fails(claim) or claim is repetition]
            if not rejected and self.ruled_out and self._may_end() and self._is_repeated(end):
                yield from self._report_dropped()
                return "stop"
            if is_sentence_grammatical and not rejected:
                yield from self._send(end, claims)
                if self.finish_reason is not None and not self.pending:
                    return self.finish_reason
            elif is_sentence_grammatical and self.tries_left:
                self.tries_left -= 1
                yield from self._go_back(rejected, rejected[0].phrase_start)
            elif reason := (yield from self._leave_out(end, claims, rejected, is_sentence_grammatical)):
                return reason

    def _begin_sentence(self) -> None:
        self.tries_left = self.strategy.tries
        self.is_restarted = False
        self.regenerated_from: int | None = None
        self.ruled_out_in_sentence: dict[str, None] = {}
        self.rejected_claims: dict[Claim, None] = {}

    def _may_end(self) -> bool:
        """Return whether the answer may end after the sent text, whose added texts count as one token each."""
        return len(self.prefix) >= self.sampling.min_tokens and not self.sampling.ignore_eos

    def _read_sentence(self) -> Generator[DraftEffect, Any, int]:
        """Read until a sentence is complete, or until a stop string. Return the offset in the pending text."""
        stop = self._find_stop()
        while self.finish_reason is None and stop is None and find_sentence_end(self.pending_text) is None:
            segment: Segment = yield ReadDraft(self._completes_sentence())
            self.pending += segment.tokens
            self.finish_reason = segment.reason
            stop = self._find_stop()
        end = find_sentence_end(self.pending_text)
        self.ends_at_stop = stop is not None and (end is None or stop < end)
        if stop is not None and self.ends_at_stop:
            self.finish_reason = "stop"
            return stop
        return len(self.pending_text) if end is None else end

    def _completes_sentence(self) -> Callable[[str], bool]:
        """Return a condition for `ReadDraft`: whether the next text completes the sentence or a stop string."""
        open_stop, is_complete = self.pending_detector.held, completes_sentence(self.pending_text)

        def ends(following: str) -> bool:
            return any(stop in open_stop + following for stop in self.sampling.stop) or is_complete(following)

        return ends

    def _restart_detector(self) -> None:
        """Let the detector read the pending tokens from the first one on."""
        self.pending_detector = copy(self.stop_detector)
        self.tokens_read = 0
        self.released = -len(self.stop_detector.held)

    def _find_stop(self) -> int | None:
        """Return the offset in the pending text of the first stop string, or None. A part of it may have been sent."""
        while self.tokens_read < len(self.pending) and not self.pending_detector.is_stopped:
            token = self.pending[self.tokens_read]
            self.released += len(self.pending_detector.add(token.text, int(token.id != NO_TOKEN)))
            self.tokens_read += 1
        return max(0, self.released) if self.pending_detector.is_stopped else None

    def _check(self, end: int) -> Generator[DraftEffect, Any, list[Claim]]:
        """Check the claims of the pending sentence, and return them."""
        claims = find_claims_after(self.text + self.pending_text[:end], len(self.text))
        yield from self.probabilities.compute(claims)
        return claims

    def _fails(self, claim: Claim) -> bool:
        return self.probabilities.get_probability(claim) < self.strategy.threshold

    def _is_grammatical(self, end: int) -> bool:
        """Whether the pending sentence is grammatical with the text that replaces a failed phrase."""
        if self.regenerated_from is None:
            return True
        return is_grammatical(self.pending_text[:end], self.regenerated_from - len(self.text))

    def _find_repetition(self, claims: list[Claim]) -> Claim | None:
        """Return the first new claim that names a thing again.

        That is one that the sentence has named or, for the first new claim, one that the answer has named.
        """
        if self.regenerated_from is None:
            return None
        named = {claim.noun for claim in claims if claim.end <= self.regenerated_from}
        new = [claim for claim in claims if claim.end > self.regenerated_from]
        for claim in new:
            if claim.noun in named or (claim is new[0] and claim.noun in self.nouns):
                return claim
            named.add(claim.noun)
        return None

    def _go_back(self, rejected: list[Claim], start: int) -> Generator[DraftEffect, Any, None]:
        """Cut the sentence off at an offset of the answer, rule the rejected phrases out, and start a draft there."""
        self._rule_out(rejected)
        self.rejected_claims |= dict.fromkeys(rejected)
        self.pending = self.pending[: count_whole_tokens_before(self.pending, start - len(self.text))]
        self._restart_detector()
        kept = self.pending_text
        self.regenerated_from = len(self.text) + len(kept)
        self.is_restarted |= not kept.strip()
        yield from self._start()

    def _rule_out(self, rejected: list[Claim]) -> None:
        """Rule rejected phrases out. One that is only repeated is ruled out for this sentence."""
        for claim in rejected:
            forms = dict.fromkeys(list_spellings(claim.noun))
            if self._fails(claim):
                self.ruled_out |= forms
            else:
                self.ruled_out_in_sentence |= forms

    def _leave_out(
        self, end: int, claims: list[Claim], rejected: list[Claim], is_sentence_grammatical: bool
    ) -> Generator[DraftEffect, Any, FinishReason | None]:
        """End the sentence before the first rejected phrase, generate it from its beginning, or drop it.

        Yields:
            The sentence, or a draft.

        Returns:
            The finish reason of an answer that ends here.
        """
        offset = len(self.text)
        starts = [claim.phrase_start for claim in rejected]
        if self.regenerated_from is not None and not is_sentence_grammatical:
            starts.append(self.regenerated_from)
        start = min(starts)
        shorter = self._shorten(self.pending_text[:end], start - offset)
        if shorter is not None:
            self._rule_out(rejected)
            self.rejected_claims |= dict.fromkeys(rejected)
            yield from self._send_shorter(shorter, start)
        elif self.strategy.tries and not self.is_restarted:
            yield from self._go_back(rejected, offset)
        elif self._may_end():
            self.rejected_claims |= dict.fromkeys(rejected)
            yield from self._report_dropped()
            return "stop"
        else:
            is_empty = not self.pending_text[:end].strip()  # then nothing replaces what was cut off
            yield from self._send(end, claims, offset if is_empty else None)
        return None

    def _shorten(self, sentence: str, start: int) -> str | None:
        """Shorten the pending sentence, unless the shorter one names nothing new."""
        indent = len(sentence) - len(sentence.lstrip())
        shorter = shorten_sentence(sentence[indent:], start - indent)
        if shorter is None:
            return None
        nouns = {claim.noun for claim in find_claims(shorter)}
        names_nothing_new = nouns <= self.nouns if nouns else shorter in self.sentences
        return None if names_nothing_new else sentence[:indent] + shorter

    def _send_shorter(self, shorter: str, start: int) -> Generator[DraftEffect, Any, None]:
        """Send a shorter sentence, and start a draft after it."""
        offset = len(self.text)
        count = count_whole_tokens_before(self.pending, count_common_characters(self.pending_text, shorter))
        rest = shorter[len(join_text(self.pending[:count])) :]
        self.pending = self.pending[:count]
        if rest:  # none where the draft has a full stop there already
            self.pending.append(Token(NO_TOKEN, rest))
        self.ends_at_stop = False
        claims = find_claims_after(self.text + shorter, offset)
        yield from self._send(len(shorter), claims, start)
        yield from self._start()

    def _send(
        self, end: int, claims: list[Claim], dropped_from: int | None = None
    ) -> Generator[DraftEffect, Any, None]:
        """Send the pending sentence.

        Args:
            end: Offset of its end in the pending text.
            claims: Its claims.
            dropped_from: Offset in the answer after which phrases that were cut off have no replacement.

        Yields:
            The sentence with its claims.
        """
        count = len(self.pending) if self.ends_at_stop else count_tokens_covering(self.pending, end)
        if self.finish_reason is not None and not join_text(self.pending[count:]).strip():
            count = len(self.pending)  # the tokens that end the answer
        sent, self.pending = self.pending[:count], self.pending[count:]
        dropped = [
            claim for claim in self.rejected_claims if dropped_from is not None and claim.phrase_start >= dropped_from
        ]
        report = (
            *(self._report(claim, "replaced") for claim in self.rejected_claims if claim not in dropped),
            *(self._report(claim, "kept") for claim in claims),
            *(self._report(claim, "dropped") for claim in dropped),
        )
        self.text += join_text(sent)
        self.prefix += [token.text if token.id == NO_TOKEN else token.id for token in sent]
        self.nouns |= {claim.noun for claim in claims}
        self.sentences.add(join_text(sent).strip())
        for token in sent:
            self.stop_detector.add(token.text, int(token.id != NO_TOKEN))
        self._restart_detector()
        self._begin_sentence()
        yield SendTokens(tuple(sent), report)

    def _start(self) -> Generator[DraftEffect, Any, None]:
        """Start a draft after the sent and the pending tokens."""
        self.finish_reason = None
        prefix = (*self.prefix, *(token.id for token in self.pending))
        yield StartDraft(prefix, tuple(self.ruled_out | self.ruled_out_in_sentence), ignores_stop=True)

    def _is_repeated(self, end: int) -> bool:
        sentence = self.pending_text[:end].strip()
        return bool(sentence) and sentence in self.sentences

    def _report_dropped(self) -> Generator[DraftEffect, Any, None]:
        """Report the claims that were cut off a sentence that is not sent."""
        if self.rejected_claims:
            yield SendTokens(claims=tuple(self._report(claim, "dropped") for claim in self.rejected_claims))

    def _report(self, claim: Claim, action: ClaimAction) -> CheckedClaim:
        is_in = action == "kept"
        return CheckedClaim(
            claim.text,
            claim.start if is_in else None,
            claim.end if is_in else None,
            self.probabilities.build_question(claim),
            self.probabilities.get_probability(claim),
            action,
        )


def list_spellings(noun: str) -> list[str]:
    """Return the forms of a noun phrase that are ruled out: singular, plural, and both with a capital letter."""
    forms = [noun, pluralize(noun)]
    return list(dict.fromkeys([*forms, *(form[0].upper() + form[1:] for form in forms)]))


def count_common_characters(first: str, second: str) -> int:
    """Count the characters with which both texts begin."""
    return next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def count_whole_tokens_before(tokens: list[Token], offset: int) -> int:
    """Count the tokens whose whole text is before an offset."""
    length = 0
    for count, token in enumerate(tokens):
        length += len(token.text)
        if length > offset:
            return count
    return len(tokens)


def count_tokens_covering(tokens: list[Token], offset: int) -> int:
    """Count the tokens that cover the text up to an offset."""
    length = 0
    for count, token in enumerate(tokens):
        if length >= offset:
            return count
        length += len(token.text)
    return len(tokens)
