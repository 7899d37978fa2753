"""An engine without a model: it says a scripted answer word by word, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar

import numpy as np

from decoding.answer import Alternative, Answer, End, Heat, Memory, Token, Usage
from decoding.ask import Ask, Probe, Prompt, Relevance
from decoding.engine import Capability, ModelCard
from decoding.errors import OnlySeenError
from decoding.strategy import Program, Strategy, Tensors

ALL: frozenset[Capability] = frozenset(
    {
        "branches",
        "logits",
        "heads",
        "probe",
        "digest",
        "relevance",
        "noise",
        "choices",
        "begin",
        "logprobs",
        "grammar",
        "tokens",
    }
)


class FakeEngine:
    """`failure` is raised after `fails_after` words; `pause` seconds pass before each word."""

    def __init__(
        self,
        words: Sequence[str] = ("A ", "cat ", "on ", "a ", "mat."),
        *,
        pause: float = 0.0,
        failure: BaseException | None = None,
        fails_after: int = 0,
        capabilities: frozenset[Capability] = ALL,
    ) -> None:
        self.words = words
        self.pause = pause
        self.failure = failure
        self.fails_after = fails_after
        self.capabilities = capabilities
        self.card = ModelCard("fake", context=4096, pictures=True)
        self.alive = True
        self.is_full = False
        self.asks: list[Ask] = []
        self.running = 0
        self.closed_early = 0
        self.kept: set[str] = set()
        self.counted: dict[str, int] = {}
        self.starts = asyncio.Event()
        self.starts.set()
        self._handles = itertools.count()

    async def generate(self, ask: Ask) -> AsyncGenerator[Token, None]:
        self.asks.append(ask)
        self.running += 1
        words = list(self.words)[: ask.sampling.max_tokens]
        finished = False
        try:
            for position, word in enumerate(words):
                await asyncio.sleep(self.pause)
                if self.failure is not None and position == self.fails_after:
                    raise self.failure
                is_last = position == len(words) - 1
                finished = is_last
                yield self._token(ask, word, self._end(ask, len(words)) if is_last else None)
        finally:
            self.running -= 1
            self.closed_early += not finished

    async def tokens(self, prompt: Prompt) -> list[int]:
        return [len(word) for message in prompt.messages for word in message.text.split()]

    async def probe(self, probe: Probe) -> tuple[Memory, Usage]:
        await asyncio.sleep(self.pause)
        return self._keep(), Usage(forward_passes=len(probe.prompts))

    async def relevance(self, relevance: Relevance) -> Heat:
        return Heat(np.ones((4, 4), dtype=np.float32), similarity=0.5, side=32)

    async def counters(self) -> dict[str, int]:
        return self.counted

    def forget(self, memory: Memory) -> None:
        self.kept.discard(memory.handle)

    async def start(self) -> None:
        await self.starts.wait()

    async def close(self) -> None:
        self.alive = False

    def _keep(self) -> Memory:
        memory = Memory(f"memory-{next(self._handles)}")
        self.kept.add(memory.handle)
        return memory

    def _token(self, ask: Ask, word: str, end: End | None) -> Token:
        chosen = Alternative(1, word, word.encode(), -0.25)
        top = tuple(
            Alternative(rank, f"{word}{rank}", b"?", -1.0 - rank) for rank in range(ask.sampling.top_logprobs or 0)
        )
        wanted = ask.sampling.top_logprobs is not None
        return Token(1, word, chosen if wanted else None, top, 0.5 if ask.compare else None, end)

    def _end(self, ask: Ask, tokens: int) -> End:
        rows = 1 + len(ask.branches)
        cut = len(self.words) > tokens
        usage = Usage(
            prompt_tokens=7,
            completion_tokens=tokens,
            steps=tokens,
            forward_passes=rows * tokens,
            changed_steps=None if any("heads" in strategy.hooks() for strategy in ask.stack) else 2,
            seconds={"decode": 0.5},
        )
        return End("length" if cut else "stop", usage, self._keep() if ask.digest else None)


class Plain(Strategy):
    """Nothing."""

    name = "plain"
    paper = "none"


class Blind(Strategy):
    """Contrast with a prompt without pictures.

    More about it.
    """

    name = "blind"
    paper = "none"
    alpha: float = 1.0
    refusals: ClassVar[list[OnlySeenError]] = []

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        return ask.branch(self, "none", ask.prompt.without_pictures())


class Focus(Strategy):
    """Scale heads after one probe of two prompts."""

    name = "focus"
    paper = "none"

    def run(self, ask: Ask) -> Program:
        memory = yield Probe(self, {"main": ask.prompt, "blind": ask.prompt.without_pictures()}, main="main")
        return ask.remember(self, memory)

    def heads(self, memory: Tensors) -> None:
        return None


class Vote(Strategy):
    """Ask twice, side by side; the first answer wins."""

    name = "vote"
    paper = "none"

    def run(self, ask: Ask) -> Program:
        answers: list[Answer] = yield [ask, ask]
        return answers[0]


FAKES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in (Blind, Focus, Plain, Vote)}
