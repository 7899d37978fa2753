"""The vLLM engine: the same strategies at the throughput of continuous batching."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from decoding.answer import Heat, Memory, Token, Usage
from decoding.ask import MAIN, Ask, Probe, Relevance
from decoding.encoder import Encoded
from decoding.engine import Capability, ModelCard
from decoding.errors import BadRequest, EngineFailed
from decoding.lacking import require, require_hooks
from decoding.matching import Matching
from decoding.prompt import Prompt
from decoding.sampling import Sampling
from decoding.saying import Saying
from decoding.strategy import Strategy
from decoding.vllm_engine import selftest
from decoding.vllm_engine.answering import Answering, failure
from decoding.vllm_engine.casting import Part, cast, cast_probe, check_whole, room_for
from decoding.vllm_engine.connection import GONE, Connection
from decoding.vllm_engine.handles import Handles
from decoding.vllm_engine.memories import digested_size
from decoding.vllm_engine.reader import Reader
from decoding.vllm_engine.settings import VllmSettings
from decoding.waiting import Place, queued, waiting

Made = TypeVar("Made")

ONE_TOKEN = Sampling(max_tokens=1, ignore_eos=True)


class VllmEngine:
    """vLLM runs in processes of its own; prompts are encoded in a thread here, and so is the matcher."""

    def __init__(self, settings: VllmSettings) -> None:
        self.settings = settings
        self._encoding = ThreadPoolExecutor(1, "onlyseen-encoder")
        self._matching = Matching()
        self._numbers = itertools.count()
        self._places: set[Place] = set()
        self._handles = Handles()
        self._forgotten: set[asyncio.Task[Any]] = set()
        self._reader: Reader | None = None
        self._line: Connection | None = None
        self._inputs: Any = None
        self._limits: Mapping[str, Any] = {}

    @property
    def capabilities(self) -> frozenset[Capability]:
        always: set[Capability] = {
            "branches",
            "logits",
            "digest",
            "heads",
            "probe",
            "noise",
            "choices",
            "begin",
            "logprobs",
            "grammar",
            "tokens",
        }
        if self._limits and not self._limits["worker"]["acts_inside"]:
            always -= {"heads", "probe"}
        return frozenset(always | ({"relevance"} if self.settings.matcher else set()))

    @property
    def card(self) -> ModelCard:
        return ModelCard(self.settings.name or Path(self.settings.model).name, self.reader.context, pictures=True)

    @property
    def reader(self) -> Reader:
        if self._reader is None:
            raise EngineFailed("The model is still being loaded.")
        return self._reader

    @property
    def line(self) -> Connection:
        if self._line is None:
            raise EngineFailed("The model is still being loaded.")
        if not self._line.is_alive:
            raise EngineFailed(GONE)
        return self._line

    @property
    def alive(self) -> bool:
        return self._line is not None and self._line.is_alive

    async def start(self) -> None:
        """Raises:
        Unsupported: this vLLM, or this model, cannot be used.
        EngineFailed: what vLLM runs is not what was asked for.
        """
        self._reader = await self._encode(lambda: Reader(self.settings.model, self.settings.context))
        line = await Connection.open(self.settings, self._reader.context)
        self._line = line
        try:
            self._limits = await line.report()
            selftest.check(self._limits)
            self._inputs = await self._encode(self._make_inputs)
            if self.settings.matcher:
                await self._matching.load(self.settings.matcher, "cpu")
            await selftest.run(self)
        except BaseException:
            await line.close()
            raise

    async def close(self) -> None:
        if self._line is not None:
            await asyncio.gather(*self._forgotten, return_exceptions=True)
            await self._line.close()
            self._line = None
        await asyncio.to_thread(self._encoding.shutdown)
        await self._matching.close()

    async def report(self) -> Mapping[str, Any]:
        """What the engine core holds and has counted."""
        return await self.line.report()

    async def counters(self) -> Mapping[str, int]:
        counted: Mapping[str, int] = (await self.report())["counters"]
        return {f"gang_{name}": count for name, count in counted.items()}

    async def generate(self, ask: Ask) -> AsyncGenerator[Token, None]:
        self._refuse(ask)
        with self._queue(1 + len(ask.branches)) as place, self._recalling(ask):
            digest = await self._digest(ask.digest) if ask.digest else None
            boxes: list[Any] = []
            answering: Answering | None = None
            try:
                parts = await self._encode(lambda: self._cast(ask, digest))
                answering = self._answering(ask, parts, digest)
                requests = await self._encode(lambda: self._requests(parts, ask.sampling, answering.saying.room))
                boxes = await self.line.submit(requests)
                answering.saying.spent.started = time.perf_counter()
                while not answering.is_over:
                    output = await self._hear(boxes[-1])
                    for token in answering.read(output):
                        place.taken = True
                        yield token
            finally:
                self._leave(boxes, digest, answering)

    async def tokens(self, prompt: Prompt) -> list[int]:
        ids: list[int] = (await self._encode(lambda: self.reader.encoder.encode(prompt))).ids.tolist()
        return ids

    async def probe(self, probe: Probe) -> tuple[Memory, Usage]:
        """All prompts run in one step, each whole, so that a layer's factors reach all tokens before the next layer."""
        require(probe.owner, {"probe", *probe.capture}, self.capabilities)
        memory, is_there = self._handles.new(), False
        with self._queue(len(probe.prompts)):
            parts = await self._encode(lambda: self._cast_probe(probe, memory))
            boxes = await self.line.submit(await self._encode(lambda: self._requests(parts, ONE_TOKEN, 1)))
            try:
                output = await self._hear(boxes[-1])
                if "failed" in (note := output.kv_transfer_params or {}):
                    raise failure(note)
                is_there = True
            finally:
                self.line.leave(boxes)
                if not is_there:
                    self.forget(memory)
        self._handles.known.add(memory.handle)
        return memory, Usage(forward_passes=len(parts))

    async def relevance(self, relevance: Relevance) -> Heat:
        if not self.alive:
            raise EngineFailed(GONE)
        return await self._matching.heat(relevance)

    def forget(self, memory: Memory) -> None:
        if self._handles.forget(memory) and self.alive:
            task = asyncio.get_running_loop().create_task(self.line.rpc("onlyseen_forget", [memory.handle]))
            self._forgotten.add(task)
            task.add_done_callback(self._forgotten.discard)

    @contextmanager
    def _recalling(self, ask: Ask) -> Iterator[None]:
        freed: list[Memory] = []
        try:
            with self._handles.used(ask.memories.values()) as freed:
                yield
        finally:
            for memory in freed:
                self.forget(memory)

    def _refuse(self, ask: Ask) -> None:
        """Raises:
        BadRequest, Unsupported: the ask cannot be served as it stands.
        """
        if ask.compare is not None and ask.compare not in ask.branches:
            raise BadRequest(f"There is no branch '{ask.compare}' to compare with.")
        for memory in ask.memories.values():
            if memory.handle not in self._handles.known:
                raise BadRequest("The request refers to a memory that is gone.")
        require_hooks(ask.stack, self.capabilities)

    @property
    def is_full(self) -> bool:
        return self._waiting >= self.settings.max_waiting

    @property
    def _waiting(self) -> int:
        return waiting(self._places)

    def _queue(self, rows: int) -> AbstractContextManager[Place]:
        """Raises:
        EngineFailed: vLLM is gone.
        Overloaded: the queue is full.
        """
        if not self.alive:
            raise EngineFailed(GONE)
        return queued(self._places, rows, self.settings.max_waiting)

    async def _digest(self, strategy: Strategy) -> Memory:
        """Raises:
        BadRequest: what the strategy remembers is too large for this engine.
        Overloaded: there is no room for it now.
        """
        return self._handles.new(await self._encode(lambda: digested_size(strategy, self.reader.vocab)))

    def _cast(self, ask: Ask, digest: Memory | None) -> list[Part]:
        encoder = self.reader.encoder
        prompts: dict[str, Prompt] = {MAIN: ask.prompt, **ask.branches}
        encoded: dict[str, Encoded] = {name: encoder.encode(prompt) for name, prompt in prompts.items()}
        firsts = {choice: encoder.first_tokens(choice).tolist() for choice in ask.choices}
        if ask.sampling.grammar is not None:  # vLLM would find out too late that no token begins such an answer
            self.reader.constraints.constraint(ask.sampling.grammar)
        return cast(ask, encoded, f"gang-{next(self._numbers)}", firsts, self.reader.eos, digest)

    def _cast_probe(self, probe: Probe, memory: Memory) -> list[Part]:
        encoded = {name: self.reader.encoder.encode(prompt) for name, prompt in probe.prompts.items()}
        parts = cast_probe(probe, encoded, f"gang-{next(self._numbers)}", memory)
        limits = self._limits
        check_whole(parts, limits["most_tokens"], limits["blocks"] - 1, limits["block_size"], limits["most_rows"])
        return parts

    def _answering(self, ask: Ask, parts: list[Part], digest: Memory | None) -> Answering:
        limits, reader = self._limits, self.reader
        # One block of vLLM's is never used.
        room = room_for(ask, parts, reader.context, limits["blocks"] - 1, limits["block_size"], limits["most_rows"])
        eos = frozenset(reader.eos)
        saying = Saying(ask, parts[0].encoded, room, eos, reader.words, reader.tokenizer, digest)
        return Answering(saying, len(parts))

    def _requests(self, parts: list[Part], sampling: Sampling, room: int) -> list[tuple[str, Any, Any]]:
        """As the line takes them. The main one is the last to arrive, and its outbox the last of those returned."""
        from decoding.vllm_engine.params import of_branch, of_main

        number = next(self._numbers)
        requests: list[tuple[str, Any, Any]] = []
        for part in reversed(parts):
            if part.name == MAIN or part.member is None:
                params = of_main(sampling, room, self.reader.eos, part.member)
            else:
                params = of_branch(room, part.member)
            inputs = self._inputs.of(part.encoded, part.prompt.pictures, part.salt)
            requests.append((f"ask-{number}-{part.name}", inputs, params))
        return requests

    async def _hear(self, box: Any) -> Any:
        try:
            return await box.get()
        except Exception as error:
            raise EngineFailed(GONE) from error

    def _leave(self, boxes: list[Any], digest: Memory | None, answering: Answering | None) -> None:
        if self.alive:
            self.line.leave(boxes)
        if digest is not None:
            if answering is not None and answering.is_over:
                self._handles.known.add(digest.handle)
            else:
                self.forget(digest)

    async def _encode(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._encoding, work)

    def _make_inputs(self) -> Any:
        from decoding.vllm_engine.prompts import Inputs

        return Inputs(self.line.llm.model_config, self.reader.encoder, self.reader.image_token)
