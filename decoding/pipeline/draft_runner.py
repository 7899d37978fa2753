"""Run the text side of a strategy that reads its own answer while it is generated (`Strategy.stream`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from decoding.drafts import ReadDraft, Segment, SendTokens, StartDraft
from decoding.errors import NO_FINISH_REASON, EngineFailed, StrategyFailed, Unsupported
from decoding.outputs import NO_TOKEN, Answer, CheckedClaim, FinishInfo, FinishReason, RequestStats, Token, Usage
from decoding.pipeline.program import DraftStrategyProgram, ProgramResult, advance_program
from decoding.requests import GenerateRequest
from decoding.strategy import Strategy
from decoding.text.stop_string_detector import StopStringDetector

SEED_STEP = 0x9E3779B97F4A7C15  # between the seeds of two drafts
MAX_SEED = 1 << 63


@dataclass(frozen=True, slots=True)
class DraftedAnswer:
    """Outcome of a strategy that reads its own answer. `StrategyRunner.stream` runs it.

    Attributes:
        strategy: The strategy.
        request: The request that its text side receives.
        base: Outcome of the inner strategies. Drafts are made of it.
        inner: The inner strategies, through which its other requests with an image go.
    """

    strategy: Strategy
    request: GenerateRequest
    base: GenerateRequest | Answer | DraftedAnswer
    inner: tuple[Strategy, ...]

    def replace(self, **changes: Any) -> DraftedAnswer:
        """Return a copy whose requests have some fields changed."""
        base = self.base if isinstance(self.base, Answer) else self.base.replace(**changes)
        return replace(self, request=self.request.replace(**changes), base=base)


Outcome = GenerateRequest | Answer | DraftedAnswer
Stream = Callable[[Outcome], AsyncGenerator[Token, None]]


def as_request(outcome: Outcome) -> GenerateRequest | None:
    """Return the generation request of an outcome; None where a strategy builds the answer itself."""
    if isinstance(outcome, DraftedAnswer):
        return as_request(outcome.base)
    return outcome if isinstance(outcome, GenerateRequest) else None


class Draft:
    """A generation in the background, and its tokens that are not read yet."""

    def __init__(self, stream: AsyncGenerator[Token, None]) -> None:
        self.finish: FinishInfo | None = None  # once its last token has been read
        self._queue: asyncio.Queue[Token | BaseException] = asyncio.Queue()
        self._stats: RequestStats | None = None
        self._final_usage: Usage | None = None  # once its last token has arrived
        self._task = asyncio.create_task(self._generate(stream))

    async def read_token(self) -> Token:
        """Wait for the next token, and raise an exception of the generation."""
        token = await self._queue.get()
        if isinstance(token, BaseException):
            raise token
        if token.finish is not None:
            self.finish = token.finish
        return token

    async def close(self) -> None:
        """Abort the generation. Its rows are freed before the next step."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def compute_usage(self) -> Usage:
        """Wait until the closed draft has left the batch, and return its cost, with tokens that were not read."""
        if self._final_usage is not None:
            return self._final_usage
        stats = self._stats
        if stats is None:
            return Usage()
        if stats.left is not None:
            await asyncio.shield(stats.left)  # others wait for it, too
        return Usage(stats.prompt_tokens, forward_passes=stats.forward_passes)

    async def _generate(self, stream: AsyncGenerator[Token, None]) -> None:
        last: Token | None = None
        try:
            async with aclosing(stream):
                async for token in stream:
                    last, self._stats = token, token.stats or self._stats  # a token of claims has none
                    self._final_usage = None if token.finish is None else token.finish.usage
                    self._queue.put_nowait(token)
            if last is None or last.finish is None:
                raise EngineFailed(NO_FINISH_REASON)
        except Exception as error:
            self._queue.put_nowait(error)


class DraftRunner:
    """Runs one `Strategy.stream` and yields the tokens that it sends."""

    def __init__(
        self,
        outcome: DraftedAnswer,
        stream: Stream,
        answer: Callable[[list[GenerateRequest], tuple[Strategy, ...]], Awaitable[list[Answer]]],
        add_usage: Callable[[Usage], None],
    ) -> None:
        """Prepare to run.

        Args:
            outcome: The strategy and its request.
            stream: Streams an outcome of the inner strategies.
            answer: Answers the strategy's other requests through the inner strategies.
            add_usage: Takes the forward passes of drafts that are not the last.
        """
        self._outcome = outcome
        self._stream = stream
        self._answer = answer
        self._add_usage = add_usage
        self._draft: Draft | None = None
        self._drafts = 0  # drafts before this one
        self._uncounted: list[Draft] = []  # drafts that are closed
        self._sent = 0  # tokens of the answer
        self._changed: int | None = 0  # steps of the answer whose likeliest token the inner strategies changed
        self._last: Token | None = None  # the last token of the draft, held back until the program ends
        self._stats = RequestStats()  # for an outer strategy, without the passes that `add_usage` gets
        self._length = 0  # characters of the sent text
        self._stop_detector = StopStringDetector(())  # of the sent text, where the drafts ignore stop strings

    async def run(self) -> AsyncGenerator[Token, None]:
        """Run the program.

        Yields:
            The tokens that the strategy sends, and tokens without text that carry claims. The last has a `finish`.
        """
        program = DraftStrategyProgram(self._outcome.strategy, self._outcome.request)
        reply: Segment | list[Answer] | None = None
        try:
            while not isinstance(effect := await advance_program(program, reply), ProgramResult):
                reply = None
                match effect:
                    case StartDraft():
                        await self._start_draft(effect)
                    case ReadDraft():
                        tokens: list[Token] = []
                        async for token in self._read(effect):
                            tokens.append(token)
                            if effect.send and (sent := self._send(token)):
                                yield sent
                            if self._stop_detector.is_stopped:
                                break
                        reply = Segment(tuple(tokens), self._get_reason())
                    case SendTokens():
                        for token in effect.tokens:
                            if sent := self._send(token):
                                yield sent
                            if self._stop_detector.is_stopped:
                                break
                        if claims := self._select_claims(effect.claims):
                            yield Token(NO_TOKEN, "", claims=claims)
                    case list():
                        reply = await self._answer(effect, self._outcome.inner)
                if self._stop_detector.is_stopped:
                    break
            if self._draft is not None:
                await self._draft.close()
            yield await self._build_final_token(effect.outcome if isinstance(effect, ProgramResult) else "stop")
        finally:
            if self._draft is not None:
                await self._draft.close()
                self._uncounted.append(self._draft)  # an outer strategy has ended the answer
            await self._count_drafts()

    async def _count_drafts(self) -> None:
        """Count the cost of the closed drafts, once."""
        while self._uncounted:
            self._add_usage(await self._uncounted.pop().compute_usage())

    async def _start_draft(self, effect: StartDraft) -> None:
        if self._draft is not None:
            await self._draft.close()
            self._uncounted.append(self._draft)
            self._drafts += 1
        base = self._outcome.base
        inner = as_request(base)
        if effect.ignores_stop and inner is not None and inner.sampling.stop and not isinstance(base, Answer):
            if not self._drafts:
                self._stop_detector = StopStringDetector(inner.sampling.stop, inner.sampling.min_tokens)
            base = base.replace(sampling=replace(inner.sampling, stop=()))
        if effect.prefix or effect.ruled_out or self._drafts:
            if not isinstance(base, GenerateRequest):
                raise Unsupported(
                    "An inner strategy builds the answer itself, so it cannot be continued from a prefix."
                )
            seed = base.sampling.seed
            sampling = base.sampling if seed is None else replace(base.sampling, seed=self._derive_seed(seed))
            base = base.replace(
                answer_prefix=effect.prefix, ruled_out=effect.ruled_out, sampling=sampling, bypasses_queue_limit=True
            )
        self._draft = Draft(self._stream(base))

    async def _read(self, effect: ReadDraft) -> AsyncGenerator[Token, None]:
        if self._draft is None:
            raise StrategyFailed(self._outcome.strategy.name, "read a draft before it started one")
        text = ""
        while self._draft.finish is None:
            token = await self._draft.read_token()
            yield token
            text += token.text
            if token.text and effect.until(text):
                break

    def _get_reason(self) -> FinishReason | None:
        return self._draft.finish.reason if self._draft is not None and self._draft.finish is not None else None

    def _send(self, token: Token) -> Token | None:
        """Count a token of the answer. The last one of the draft waits for the end of the program."""
        if token.stats is not None:
            self._stats.prompt_tokens = token.stats.prompt_tokens
        text = self._stop_detector.add(token.text, int(token.id != NO_TOKEN))
        token = replace(token, text=text, stats=self._stats)
        self._length += len(token.text)
        self._sent += token.id != NO_TOKEN
        if self._changed is not None:
            self._changed = (
                None if token.changed is None and token.id != NO_TOKEN else self._changed + bool(token.changed)
            )
        if token.finish is not None:
            self._last = token
            return None
        return token

    def _select_claims(self, claims: tuple[CheckedClaim, ...]) -> tuple[CheckedClaim, ...]:
        """Leave out the claims of text that a stop string has cut off."""
        if not self._stop_detector.is_stopped:
            return claims
        return tuple(claim for claim in claims if claim.end is None or claim.end <= self._length)

    async def _build_final_token(self, reason: FinishReason) -> Token:
        """Attach the finish reason and the usage to the last token, or to one without text."""
        await self._count_drafts()
        draft, self._draft = self._draft, None
        assert draft is not None, "a program that ends has started a draft"
        usage = await draft.compute_usage()
        usage = replace(usage, completion_tokens=self._sent, steps=self._sent, changed_steps=self._changed)
        finish, rest = FinishInfo(reason, usage), self._stop_detector.flush()
        if self._last is None:
            return Token(NO_TOKEN, rest, finish=finish)
        return replace(self._last, text=self._last.text + rest, finish=finish)

    def _derive_seed(self, seed: int) -> int:
        return (seed + self._drafts * SEED_STEP) % MAX_SEED
