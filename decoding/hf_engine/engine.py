"""The transformers engine: the reference, and the default."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, get_args

from decoding.answer import Heat, Memory, Token, Usage
from decoding.ask import MAIN, Ask, Probe, Relevance
from decoding.constraint import Constraints
from decoding.detokenizer import Vocabulary
from decoding.encoder import Encoded
from decoding.engine import Capability, ModelCard
from decoding.errors import BadRequest, EngineFailed, OnlySeenError, Unsupported
from decoding.hf_engine import heap, probing
from decoding.hf_engine.model import Model
from decoding.hf_engine.request import Remembered, Request
from decoding.hf_engine.settings import HFSettings
from decoding.hf_engine.worker import Ticket, Worker, outcome, stopped
from decoding.matching import Matching
from decoding.prompt import Picture, Prompt
from decoding.sampling import Sampling
from decoding.waiting import Place, queued, waiting

Made = TypeVar("Made")
ALL: frozenset[Capability] = frozenset(get_args(Capability))


class HFEngine:
    """The model runs in one thread, prompts are encoded in another, the matcher in a third; the event loop in none."""

    def __init__(self, settings: HFSettings) -> None:
        heap.restrain()
        self.settings = settings
        self._encoding = ThreadPoolExecutor(1, "onlyseen-encoder")
        self._matching = Matching()
        self._remembered: dict[str, Remembered] = {}
        self._places: set[Place] = set()
        self._handles = itertools.count()
        self._model: Model | None = None
        self._worker: Worker | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        lacking: set[Capability] = set() if self.settings.matcher else {"relevance"}
        if self._model is not None:
            lacking |= {"vision"} if self._model.vision is None else set()
            lacking |= {"narrow"} if self._model.narrowing is None else set()
        return ALL - lacking

    @property
    def card(self) -> ModelCard:
        name = self.settings.name or Path(self.settings.model).name
        return ModelCard(name, self.model.context, pictures=True)

    @property
    def model(self) -> Model:
        if self._model is None:
            raise EngineFailed("The model is still being loaded.")
        return self._model

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            raise EngineFailed("The model is still being loaded.")
        return self._worker

    @property
    def alive(self) -> bool:
        return self._worker is not None and self._worker.alive

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._model = await loop.run_in_executor(self._encoding, Model, self.settings)
        if self.settings.matcher:
            await self._matching.load(self.settings.matcher, str(self._model.device))
        model, tokenizer = self._model, self._model.encoder.tokenizer
        self._words = Vocabulary(tokenizer)
        self._constraints = Constraints(tokenizer, model.vocab, model.eos.tolist(), model.device)
        self._worker = Worker(self._model, self.settings.max_rows, self.settings.prefix_cache_bytes)
        self._worker.start()
        await self._warm_up()

    async def close(self) -> None:
        if self._worker is not None and self._worker.alive:
            await asyncio.to_thread(self._worker.close)
        await asyncio.to_thread(self._encoding.shutdown)
        await self._matching.close()

    async def generate(self, ask: Ask) -> AsyncGenerator[Token, None]:
        rows = 1 + len(ask.branches)
        if rows > self.settings.max_rows:
            raise Unsupported(f"The request needs {rows} rows; this engine runs {self.settings.max_rows}.")
        if ask.compare is not None and ask.compare not in ask.branches:
            raise BadRequest(f"There is no branch '{ask.compare}' to compare with.")
        memories = {owner: self._recall(memory) for owner, memory in ask.memories.items()}
        with self._queue(rows) as place:
            request = await self._encode(lambda: self._request(ask, memories))
            ticket = Ticket(request, place, asyncio.get_running_loop())
            self.worker.submit(ticket)
            try:
                while True:
                    said = await ticket.said.get()
                    if isinstance(said, OnlySeenError):
                        raise said
                    if said.end is None:
                        yield said
                        continue
                    memory = self._remember(Remembered(request.digested)) if ask.digest else None
                    yield replace(said, end=replace(said.end, memory=memory))
                    return
            finally:
                ticket.cancelled = True

    async def tokens(self, prompt: Prompt) -> list[int]:
        ids: list[int] = (await self._encode(lambda: self.model.encoder.encode(prompt))).ids.tolist()
        return ids

    async def probe(self, probe: Probe) -> tuple[Memory, Usage]:
        with self._queue(len(probe.prompts)):
            prompts = await self._encode(lambda: self._prompts(probe.prompts))
            remembered = await self.worker.errand(lambda: probing.run(probe, prompts, self.model))
        return self._remember(remembered), Usage(forward_passes=len(prompts))

    async def relevance(self, relevance: Relevance) -> Heat:
        if not self.alive:
            raise stopped()
        return await self._matching.heat(relevance)

    def forget(self, memory: Memory) -> None:
        self._remembered.pop(memory.handle, None)

    async def counters(self) -> Mapping[str, int]:
        """Tokens of prompts with pictures: those looked up in the prefix cache, and those found there."""
        prefixes = self.worker.prefixes
        return {"prefix_cache_queries": prefixes.queries, "prefix_cache_hits": prefixes.hits}

    @property
    def is_full(self) -> bool:
        return self._waiting >= self.settings.max_waiting

    @property
    def _waiting(self) -> int:
        return waiting(self._places)

    def _queue(self, rows: int) -> AbstractContextManager[Place]:
        """A place for these rows, from before they are encoded until the batch takes them.

        Raises:
            EngineFailed: the engine has stopped.
            Overloaded: the queue is full.
        """
        if not self.alive:
            raise stopped()
        return queued(self._places, rows, self.settings.max_waiting)

    async def _encode(self, work: Callable[[], Made]) -> Made:
        """Raises:
        EngineFailed: the work failed for no fault of the client's.
        """
        made: Made
        made, failure = await asyncio.get_running_loop().run_in_executor(self._encoding, outcome, work)
        if failure is not None:
            raise failure
        return made

    def _prompts(self, prompts: Mapping[str, Prompt]) -> dict[str, Encoded]:
        return {name: self.model.encoder.encode(prompt) for name, prompt in prompts.items()}

    def _request(self, ask: Ask, memories: Mapping[str, Remembered]) -> Request:
        prompts = self._prompts({MAIN: ask.prompt, **ask.branches})
        return Request(ask, prompts, memories, self.model, self._words, self._constraints)

    def _remember(self, remembered: Remembered) -> Memory:
        memory = Memory(f"memory-{next(self._handles)}")
        self._remembered[memory.handle] = remembered
        return memory

    def _recall(self, memory: Memory) -> Remembered:
        if memory.handle not in self._remembered:
            raise BadRequest("The request refers to a memory that is gone.")
        return self._remembered[memory.handle]

    async def _warm_up(self) -> None:
        """First passes allocate and tune: better now than in a user's first answer."""
        from PIL import Image

        picture = Picture(Image.new("RGB", (64, 64)))
        ask = Ask(Prompt.of("Hello.", picture), Sampling(max_tokens=2, ignore_eos=True))
        if self.settings.max_rows > 1:
            ask = ask.but(branches={"warm/up": ask.prompt.without_pictures()})
        async for _ in self.generate(ask):
            pass
        if self._matching.matcher is not None:
            await self.relevance(Relevance(picture, "hello"))
