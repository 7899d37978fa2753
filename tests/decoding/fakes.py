"""An engine without a model: it answers from a queue and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Set
from typing import get_args

import numpy as np
from PIL import Image

from decoding.answer import End, Heat, Memory, Token, Usage
from decoding.ask import Ask, Picture, Probe, Prompt, Relevance
from decoding.engine import Capability, ModelCard

EVERYTHING: frozenset[Capability] = frozenset(get_args(Capability))


class FakeEngine:
    """Says the queued answers in turn, word by word, then "A cat." for ever; a queued exception is raised instead.

    Every answer and every probed prompt costs `rows` forward passes. With `stuck_after`, questions after that many are
    never answered, and each releases `stuck`.
    """

    rows = 5

    def __init__(
        self, *answers: str | Exception, stuck_after: int | None = None, lacks: Set[Capability] = frozenset()
    ) -> None:
        self.answers = deque(answers)
        self.stuck_after = stuck_after
        self.capabilities = EVERYTHING - lacks
        self.stuck = asyncio.Semaphore(0)
        self.history: list[Ask | Probe | Relevance] = []
        self.left: list[Memory] = []  # memories that nobody has forgotten
        self.forgotten: list[Memory] = []
        self.running = 0
        self.most_running = 0
        self.cut_short = 0  # answers that were closed or cancelled before their end
        self.alive = True
        self.is_full = False

    @property
    def card(self) -> ModelCard:
        return ModelCard("fake", context=4096, pictures=True)

    async def generate(self, ask: Ask) -> AsyncGenerator[Token, None]:
        self.history.append(ask)
        said = self.answers.popleft() if self.answers else "A cat."
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        finished = False
        try:
            await self._pace()
            if isinstance(said, Exception):
                raise said
            words = said.split(" ")
            for number, word in enumerate(words, 1):
                await asyncio.sleep(0)
                text = word if number == 1 else f" {word}"
                finished = number == len(words)
                yield Token(number, text, end=self._end(ask, number) if finished else None)
        finally:
            self.running -= 1
            self.cut_short += not finished

    async def _pace(self) -> None:
        if self.stuck_after is not None and len(self.history) > self.stuck_after:
            self.stuck.release()
            await asyncio.Event().wait()

    def _end(self, ask: Ask, tokens: int) -> End:
        usage = Usage(completion_tokens=tokens, steps=tokens, forward_passes=self.rows)
        choices = {choice: -1.0 - number for number, choice in enumerate(ask.choices)}
        return End("stop", usage, self._remember() if ask.digest else None, choices)

    def _remember(self) -> Memory:
        memory = Memory(f"memory {len(self.left) + len(self.forgotten)}")
        self.left.append(memory)
        return memory

    async def tokens(self, prompt: Prompt) -> list[int]:
        raise NotImplementedError

    async def probe(self, probe: Probe) -> tuple[Memory, Usage]:
        self.history.append(probe)
        await self._pace()
        return self._remember(), Usage(forward_passes=self.rows * len(probe.prompts))

    async def relevance(self, relevance: Relevance) -> Heat:
        self.history.append(relevance)
        await self._pace()
        return Heat(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4), similarity=0.5, side=32)

    async def counters(self) -> dict[str, int]:
        return {}

    def forget(self, memory: Memory) -> None:
        self.left.remove(memory)
        self.forgotten.append(memory)

    async def start(self) -> None:
        self.alive = True

    async def close(self) -> None:
        self.alive = False


def speckled(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Picture:
    """A picture without a black pixel. `size` is width and height."""
    pixels = np.random.default_rng(seed).integers(1, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels))


def asking(text: str = "Is there a cat in the image?", *pictures: Picture) -> Ask:
    """An ask about the given pictures, or about one speckled one."""
    return Ask(Prompt.of(text, *(pictures or (speckled(),))))
