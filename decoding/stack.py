"""The one driver: runs the text side of a stack of strategies against an engine, outermost first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from decoding.answer import Answer, Memory, Token, Usage
from decoding.ask import Ask, Probe, Relevance
from decoding.engine import Engine
from decoding.errors import EngineFailed
from decoding.lacking import require_hooks
from decoding.strategy import Effect, Program, Strategy

GROUNDING = "grounding/blind"


class Run:
    """One request on its way through a stack. Close it to free what its strategies left in the engine.

    `spent` adds up what the questions asked on the way have cost; the final answer is not in it.
    """

    def __init__(self, stack: Sequence[Strategy], engine: Engine) -> None:
        self.stack = tuple(stack)
        self.engine = engine
        self.spent = Usage()
        self._memories: list[Memory] = []

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *_: object) -> None:
        for memory in self._memories:
            self.engine.forget(memory)

    async def resolve(self, ask: Ask, *, grounding: bool = False) -> Ask | Answer:
        """Ask all the questions of the stack: what is left is one ask for the engine, or already an answer.

        With `grounding`, every token of the final ask is measured against the same prompt without its pictures.

        Raises:
            Unsupported: a strategy acts where the engine cannot let it; nothing has been asked then.
        """
        require_hooks(self.stack, self.engine.capabilities)
        began = time.perf_counter()
        outcome = await self._resolve(self.stack, ask)
        self.spent = replace(self.spent, seconds=add(self.spent.seconds, {"prepare": time.perf_counter() - began}))
        if grounding and isinstance(outcome, Ask):
            blind = outcome.prompt.without_pictures()
            return outcome.but(branches={**outcome.branches, GROUNDING: blind}, compare=GROUNDING)
        return outcome

    async def stream(self, outcome: Ask | Answer) -> AsyncGenerator[Token, None]:
        """The tokens of what `resolve` left. Closing it cancels the engine's work at once."""
        if isinstance(outcome, Answer):
            for token in outcome.tokens:
                yield token
            return
        async with aclosing(self.engine.generate(outcome)) as tokens:
            async for token in tokens:
                yield token

    async def _resolve(self, stack: tuple[Strategy, ...], ask: Ask) -> Ask | Answer:
        for depth, strategy in enumerate(stack):
            outcome = await self._converse(strategy, ask, inner=stack[depth + 1 :])
            if isinstance(outcome, Answer):
                return outcome
            ask = outcome.but(stack=(*outcome.stack, strategy))
        return ask

    async def _converse(self, strategy: Strategy, ask: Ask, inner: tuple[Strategy, ...]) -> Ask | Answer:
        program, reply = strategy.run(ask), None
        while True:
            # Off the event loop: strategies edit pictures between their questions.
            step = asyncio.ensure_future(asyncio.to_thread(advance, program, reply))
            try:
                said = await asyncio.shield(step)
                if isinstance(said, Finished):
                    return said.outcome
                reply = await self._perform(said, inner)
            except BaseException:
                close(program, step)
                raise

    async def _perform(self, effect: Effect, inner: tuple[Strategy, ...]) -> Any:
        match effect:
            case Ask():
                return await self._answer(effect, inner)
            case Probe():
                memory, usage = await self.engine.probe(effect)
                self._memories.append(memory)
                self.spend(usage)
                return memory
            case Relevance():
                return await self.engine.relevance(effect)
            case list():
                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(self._answer(ask, inner)) for ask in effect]
                except ExceptionGroup as failures:  # the first has ended the others, and stands for all
                    raise failures.exceptions[0] from None
                return [task.result() for task in tasks]

    async def _answer(self, ask: Ask, inner: tuple[Strategy, ...]) -> Answer:
        outcome = await self._resolve(inner, ask)
        if isinstance(outcome, Answer):
            return outcome
        answer = await collect(self.stream(outcome))
        if answer.memory is not None:
            self._memories.append(answer.memory)
        self.spend(answer.end.usage)
        return answer

    def spend(self, usage: Usage) -> None:
        """Only rows count: steps and tokens are those of the final answer."""
        self.spent = replace(self.spent, forward_passes=self.spent.forward_passes + usage.forward_passes)


async def collect(tokens: AsyncGenerator[Token, None]) -> Answer:
    said: list[Token] = []
    async with aclosing(tokens):
        async for token in tokens:
            said.append(token)
    if not said or said[-1].end is None:
        raise EngineFailed("The engine ended an answer without saying why.")
    return Answer("".join(token.text for token in said), tuple(said), said[-1].end)


class Finished:
    """A program's return value. StopIteration itself cannot cross a thread's future."""

    def __init__(self, outcome: Ask | Answer) -> None:
        self.outcome = outcome


def advance(program: Program, reply: Any) -> Effect | Finished:
    try:
        return program.send(reply)
    except StopIteration as stop:
        return Finished(stop.value)


def close(program: Program, step: asyncio.Future[Effect | Finished]) -> None:
    """A generator cannot be closed while a thread still runs it: a cancelled request does not wait for that."""

    def finish(done: asyncio.Future[Effect | Finished]) -> None:
        done.exception()  # looked at, so that asyncio does not report it as missed
        program.close()

    if step.done():
        program.close()
    else:
        step.add_done_callback(finish)


def add(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {phase: one.get(phase, 0.0) + other.get(phase, 0.0) for phase in {**one, **other}}
