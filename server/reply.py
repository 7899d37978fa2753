"""One request's answers, from its strategies' questions to the last token of each choice."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from anyio.to_thread import run_sync

from decoding.answer import Answer, End, Token, Usage
from decoding.ask import Ask
from decoding.errors import BadRequest, EngineFailed, Unsupported
from decoding.sampling import Sampling
from server import tracing
from server.deadline import until
from server.receipt import Receipt, receipt
from server.together import together
from server.views import views

if TYPE_CHECKING:
    from decoding.stack import Run
    from server.metrics import Watch

log = structlog.get_logger("onlyseen.server")


class Reply:
    """Begin it, take its tokens, close it: closing frees whatever still runs or is kept for it in the engine."""

    def __init__(
        self,
        run: Run,
        asks: Sequence[Ask],
        *,
        each: int,
        grounding: bool,
        trace: bool,
        watch: Watch,
        deadline: float,
        most_rows: int,
    ) -> None:
        self.choices = each * len(asks)
        self.ends: dict[int, End] = {}
        self._run = run
        self._asks = asks
        self._each = each  # choices of each prompt
        self._grounding = grounding
        self._trace = trace
        self._watch = watch
        self._most_rows = most_rows
        self._deadline = deadline  # of the event loop's clock
        self._began = time.perf_counter()
        self._branches: tuple[str, ...] = ()
        self._views: dict[str, list[str]] | None = None
        self._answered: tuple[bool, ...] = ()  # for each prompt, whether a strategy has answered it in words of its own
        self._tokens: AsyncGenerator[tuple[int, Token], None] | None = None
        self._first: tuple[int, Token] | None = None

    async def begin(self) -> None:
        """Done when every choice has its first token: what cannot be served has been refused by then."""
        try:
            await self._begin()
        except BadRequest as error:
            if error.code == "context_length_exceeded" and await self._fit_alone():
                error.param = "decoding.strategy"
            raise

    async def _begin(self) -> None:
        outcomes = [await self._run.resolve(ask, grounding=self._grounding) for ask in self._asks]
        self._answered = tuple(isinstance(outcome, Answer) for outcome in outcomes)
        if any(self._answered) and (field := idle(self._asks[0].sampling, self._grounding)):
            message = f"The strategy has answered in words of its own, on which {field} cannot act: leave it out."
            raise Unsupported(message, param=field)
        asks = [outcome for outcome in outcomes if isinstance(outcome, Ask)]
        self._branches = tuple(asks[0].branches) if asks else ()
        self._fits(self._each * sum(1 + len(ask.branches) for ask in asks))
        if self._trace:
            self._views = await run_sync(views, asks[0]) if asks else {}
        streams = [self._run.stream(seeded(outcome, choice)) for outcome in outcomes for choice in range(self._each)]
        self._tokens = together(streams)
        self._first = await anext(self._tokens, None)
        self._watch.began_to_answer()

    async def tokens(self) -> AsyncGenerator[tuple[int, Token], None]:
        """(choice, token), in the order in which they come."""
        if self._first is not None:
            yield self._heard(*self._first)
        if self._tokens is not None:
            while (said := await self._next(self._tokens)) is not None:
                self._watch.token()
                yield self._heard(*said)
        if len(self.ends) < self.choices:
            raise EngineFailed("The engine ended an answer without saying why.")

    async def close(self) -> None:
        try:
            if self._tokens is not None:
                await self._tokens.aclose()
            await self._run.__aexit__(None, None, None)
        finally:
            if self.is_over:
                told = self.receipt
                self._watch.answered(told, self.usage.prompt_tokens)
                log.info("receipt", **told.model_dump(exclude={"pictures"}))
            self._watch.over()

    @property
    def is_over(self) -> bool:
        return len(self.ends) == self.choices

    @property
    def usage(self) -> Usage:
        """Each prompt once, the answers together."""
        first = [self.ends[choice].usage for choice in range(0, self.choices, self._each)]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in first),
            completion_tokens=sum(end.usage.completion_tokens for end in self.ends.values()),
        )

    @property
    def receipt(self) -> Receipt:
        usages: list[Usage] = []
        for choice, end in sorted(self.ends.items()):
            prompt, copy = divmod(choice, self._each)
            if not self._answered[prompt]:
                usages.append(end.usage)
            elif copy == 0:  # a strategy's own answer, the same for all: its passes are among those of its questions
                usages.append(replace(end.usage, forward_passes=0))
        total = time.perf_counter() - self._began
        told = receipt(self._run.stack, self._branches, self._run.spent, usages, total)
        return told if self._views is None else told.model_copy(update={"pictures": self._views})

    def _fits(self, rows: int) -> None:
        """Raises: BadRequest: more sequences than the engine runs at once."""
        if rows > self._most_rows:
            message = f"The request needs {rows} sequences, n times (1 + branches); at most {self._most_rows} are run."
            param = "n" if self._each > 1 else "messages" if len(self._asks) > 1 else "decoding.strategy"
            raise BadRequest(message, param=param, code="too_many_sequences")

    async def _fit_alone(self) -> bool:
        """Whether the prompts are short enough, but for what the strategies make of them."""
        if not self._run.stack or "tokens" not in self._run.engine.capabilities:
            return False
        try:
            for ask in self._asks:
                await self._run.engine.tokens(ask.prompt)
        except BadRequest:
            return False
        return True

    async def _next(self, tokens: AsyncGenerator[tuple[int, Token], None]) -> tuple[int, Token] | None:
        async with until(self._deadline):
            return await anext(tokens, None)

    def _heard(self, choice: int, token: Token) -> tuple[int, Token]:
        if token.end is not None:
            self.ends[choice] = token.end
            if self.is_over:
                tracing.note(self.receipt)  # now: the span ends with the last byte, before the reply is closed
        return choice, token


def idle(sampling: Sampling, grounding: bool) -> str | None:
    """The first field that asks something of tokens as they are generated: an answer that is there has none."""
    asked = {
        "response_format": sampling.grammar is not None,
        "decoding.grounding": grounding,
        "stop": bool(sampling.stop),
        "min_tokens": sampling.min_tokens > 1,
        "ignore_eos": sampling.ignore_eos,
        "repetition_penalty": sampling.repetition_penalty != 1,
        "presence_penalty": sampling.presence_penalty != 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
    }
    return next((field for field, is_asked in asked.items() if is_asked), None)


def seeded(outcome: Ask | Answer, choice: int) -> Ask | Answer:
    """Choices of one request differ, and each can be had again."""
    if isinstance(outcome, Answer) or outcome.sampling.seed is None:
        return outcome
    return outcome.but(sampling=replace(outcome.sampling, seed=(outcome.sampling.seed + choice) % (1 << 63)))
