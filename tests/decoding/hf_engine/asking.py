"""Asks an engine something, through a stack of strategies, as the server does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image

from decoding.answer import Answer, Heat, Usage
from decoding.ask import Ask, Picture, Probe, Prompt, Relevance, Sampling
from decoding.engine import Engine
from decoding.hf_engine.engine import HFEngine
from decoding.registry import build
from decoding.stack import Run, collect
from decoding.strategy import Strategy

DESCRIBE = "Please describe this image in detail."


SMALL: dict[str, dict[str, Any]] = {
    "vdgd": {"description_tokens": 12},
    "code": {"description_tokens": 12},
    "mvp": {"description_tokens": 4, "path_tokens": 4},
    "zoomeye": {"side": 32, "cues": "cat"},  # the examples with which it asks for cues fill the tiny model's context
}


def stack(names: str, **parameters: Any) -> tuple[Strategy, ...]:
    """Descriptions are kept short, and searches shallow."""
    small = {name: SMALL[name] for name in names.split("+") if name in SMALL}
    return build(names, {name: small.get(name, {}) | parameters.get(name, {}) for name in {**small, **parameters}})


def picture(seed: int) -> Picture:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Picture(Image.fromarray(noise))


def prompt(seed: int = 0, text: str = DESCRIBE) -> Prompt:
    return Prompt.of(text, picture(seed))


def exactly(tokens: int, **sampling: Any) -> Sampling:
    return Sampling(max_tokens=tokens, ignore_eos=True, **sampling)


async def answer(
    engine: Engine, strategies: Sequence[Strategy] | str, asked: Prompt, sampling: Sampling, *, grounding: bool = False
) -> tuple[Answer, Usage]:
    """The answer, and what the questions on the way have cost."""
    chosen = stack(strategies) if isinstance(strategies, str) else strategies
    async with Run(chosen, engine) as run:
        outcome = await run.resolve(Ask(asked, sampling), grounding=grounding)
        return await collect(run.stream(outcome)), run.spent


async def say(engine: Engine, asked: Prompt, sampling: Sampling) -> Answer:
    return await collect(engine.generate(Ask(asked, sampling)))


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Another thread makes it true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def held(engine: HFEngine) -> AsyncIterator[None]:
    """The model's thread stands still within this block."""
    standing, go = threading.Event(), threading.Event()

    def stand() -> None:
        standing.set()
        go.wait(20)

    task = asyncio.create_task(engine.worker.errand(stand))
    await until(standing.is_set)
    try:
        yield
    finally:
        go.set()
        await task


def probing() -> Probe:
    (vhr,), asked = stack("vhr"), prompt()
    return Probe(vhr, {"seeing": asked, "blind": asked.without_pictures()}, main="seeing", layerwise=True)


class FakeMatcher:
    """Finds the bright parts of a picture relevant, and more of a picture the longer the text."""

    def relevance(self, seen: Picture, text: str) -> Heat:
        grid = np.asarray(seen.image.convert("L").resize((6, 6)), dtype=np.float32)
        return Heat(grid, similarity=min(0.9, len(text) / 50), side=24)

    def heats(self, asked: Sequence[Relevance]) -> list[Heat]:
        return [self.relevance(one.picture, one.text) for one in asked]
