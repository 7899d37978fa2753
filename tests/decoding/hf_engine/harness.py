"""Run requests on an engine through a stack of strategies, as the server does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image

from decoding.engine import Engine
from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer, RelevanceMap, Usage
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import build
from decoding.requests import GenerateRequest, ImageInput, ProbeRequest, Prompt, RelevanceRequest, SamplingParams
from decoding.strategy import Strategy

DESCRIBE = "Please describe this image in detail."


SMALL: dict[str, dict[str, Any]] = {
    "describe": {"description_tokens": 12},
    "vdgd": {"description_tokens": 12},
    "code": {"description_tokens": 12},
    "mvp": {"description_tokens": 4, "path_tokens": 4},
    "zoomeye": {"side": 32, "cues": "cat"},  # its examples for cues fill the tiny model's context
}


def build_stack(names: str, **parameters: Any) -> tuple[Strategy, ...]:
    """Build a stack, with short descriptions and shallow searches by default."""
    small = {name: SMALL[name] for name in names.split("+") if name in SMALL}
    return build(names, {name: small.get(name, {}) | parameters.get(name, {}) for name in {**small, **parameters}})


def make_image(seed: int) -> ImageInput:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return ImageInput(Image.fromarray(noise))


def make_prompt(seed: int = 0, text: str = DESCRIBE) -> Prompt:
    return Prompt.from_text(text, make_image(seed))


def exact_length(tokens: int, **sampling: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **sampling)


async def run_strategies(
    engine: Engine,
    strategies: Sequence[Strategy] | str,
    prompt: Prompt,
    sampling: SamplingParams,
    *,
    grounding: bool = False,
    cache_salt: str | None = None,
) -> tuple[Answer, Usage]:
    """Run a request through strategies. Return the answer, and the usage of the strategies' own requests."""
    chosen = build_stack(strategies) if isinstance(strategies, str) else strategies
    async with StrategyRunner(chosen, engine, cache_salt=cache_salt) as run:
        outcome = await run.resolve(GenerateRequest(prompt, sampling), grounding=grounding)
        return await collect_answer(run.stream(outcome)), run.prior_usage


async def generate(engine: Engine, prompt: Prompt, sampling: SamplingParams) -> Answer:
    return await collect_answer(engine.generate(GenerateRequest(prompt, sampling)))


async def wait_until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for a condition that another thread makes true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def pause_worker(engine: HFEngine) -> AsyncIterator[None]:
    """Block the worker thread within the block."""
    is_blocked, go = threading.Event(), threading.Event()

    def block() -> None:
        is_blocked.set()
        go.wait(20)

    task = asyncio.create_task(engine.worker.run_task(block))
    await wait_until(is_blocked.is_set)
    try:
        yield
    finally:
        go.set()
        await task


def make_probe() -> ProbeRequest:
    (vhr,), prompt = build_stack("vhr"), make_prompt()
    return ProbeRequest(
        {"with_image": prompt, "without_image": prompt.without_images()}, main="with_image", layerwise=True
    ).with_strategy(vhr)


class FakeMatcher:
    """Matcher whose relevance is brightness, and whose similarity grows with the length of the text."""

    def relevance(self, seen: ImageInput, text: str) -> RelevanceMap:
        grid = np.asarray(seen.visible.convert("L").resize((6, 6)), dtype=np.float32)
        return RelevanceMap(grid, similarity=min(0.9, len(text) / 50), input_size=24)

    def compute_relevance_maps(self, requests: Sequence[RelevanceRequest]) -> list[RelevanceMap]:
        return [self.relevance(request.image, request.text) for request in requests]
