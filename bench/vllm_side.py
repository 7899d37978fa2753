"""One of the two engines that are compared, in a process of its own: ours, or vLLM as it is."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from bench.models import EMBEDDED

QUESTION = "Please describe this image in detail."
SCENES = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))
ROWS, CONTEXT = 64, 1024


@dataclass(frozen=True)
class Task:
    """So many requests of each stack, all at once. Only those of the first stack are timed; the others go on."""

    stacks: tuple[str, ...]
    at_once: int
    tokens: int
    first: int  # number of the first picture: nothing is asked twice, so that no cache answers


@dataclass(frozen=True)
class Timed:
    """What the first stack's requests took, in seconds."""

    asking: float  # until the strategies have asked what they ask first
    answering: float  # from then on until the last token
    processor: float  # what all processes of the engine have computed while they answered
    rows: float  # of each request in a step of its answer
    scheduling: float  # processor seconds of the scheduler in a step
    steps: int

    def tokens_a_second(self, task: Task) -> float:
        return task.at_once * task.tokens / self.answering

    def tokens_a_second_in_all(self, task: Task) -> float:
        return task.at_once * task.tokens / (self.asking + self.answering)

    def tokens_a_processor_second(self, task: Task) -> float:
        return task.at_once * task.tokens / self.processor


class Side:
    """`ours` or not. The process that measures talks to it through a pipe."""

    def __init__(self, model: str, ours: bool, folder: Path) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._line, theirs = spawning.Pipe()
        clock = folder / ("ours" if ours else "bare")
        self._process = spawning.Process(target=serve, args=(theirs, model, ours, clock))
        self._process.start()
        self._hear()

    def run(self, task: Task) -> Timed:
        self._line.send(task)
        return self._hear()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._line.send(None)
        self._process.join()

    def _hear(self) -> Any:
        while not self._line.poll(1):
            if not self._process.is_alive():
                raise RuntimeError("the engine has died")
        said = self._line.recv()
        if isinstance(said, str):
            raise RuntimeError(said)
        return said


def serve(line: Connection, model: str, ours: bool, clock: Path) -> None:
    from bench import vllm_timed

    vllm_timed.create(clock)
    asyncio.run(talk(line, Ours(model) if ours else Bare(model)))


async def talk(line: Connection, engine: Ours | Bare) -> None:
    from bench import vllm_timed

    await engine.start()
    line.send(True)
    while (task := await asyncio.to_thread(line.recv)) is not None:
        before = vllm_timed.read()
        try:
            asking, answering, processor, rows = await engine.perform(task)
        except Exception as error:
            line.send(repr(error))
            raise
        scheduling, updating, steps = (now - then for now, then in zip(vllm_timed.read(), before, strict=True))
        line.send(Timed(asking, answering, processor, rows, (scheduling + updating) / steps, int(steps)))
    await engine.close()


def processor() -> float:
    """Seconds that this process and those that it has started have computed."""
    here = psutil.Process()
    times = (process.cpu_times() for process in (here, *here.children(recursive=True)))
    return sum(time.user + time.system for time in times)


def picture(number: int) -> Any:
    """Each number is another picture: a corner's colour is its own."""
    image = Image.open(SCENES[number % len(SCENES)]).convert("RGB")
    image.putpixel((0, 0), (number % 251, number // 251 % 251, 7))
    return image


class Ours:
    def __init__(self, model: str) -> None:
        from decoding.vllm_engine.engine import VllmEngine
        from decoding.vllm_engine.settings import VllmSettings

        matcher, timed = str(EMBEDDED / "matcher"), "bench.vllm_timed.TimedGangs"
        settings = VllmSettings(
            model, matcher, context=CONTEXT, max_rows=ROWS, max_waiting=4096, block_tokens=32, scheduler=timed
        )
        self.engine = VllmEngine(settings)

    async def start(self) -> None:
        await self.engine.start()

    async def close(self) -> None:
        await self.engine.close()

    async def perform(self, task: Task) -> tuple[float, float, float, float]:
        from decoding.ask import Ask, Picture, Prompt, Sampling
        from decoding.registry import build
        from decoding.stack import Run, collect

        ready, go, sizes = asyncio.Semaphore(0), asyncio.Event(), []

        async def one(stack: str, number: int) -> float:
            sampling = Sampling(max_tokens=task.tokens, ignore_eos=True)
            async with Run(build(stack, {}), self.engine) as run:
                outcome = await run.resolve(Ask(Prompt.of(QUESTION, Picture(picture(number))), sampling))
                assert isinstance(outcome, Ask)
                ready.release()
                await go.wait()
                await collect(run.stream(outcome))
                sizes.append(1 + len(outcome.branches)) if stack == task.stacks[0] else None
                return time.perf_counter()

        numbers = itertools.count(task.first)
        began = time.perf_counter()
        asked = [one(stack, next(numbers)) for stack in task.stacks for _ in range(task.at_once)]
        tasks = [asyncio.create_task(each) for each in asked]
        for _ in tasks:
            await ready.acquire()
        gone, computed = time.perf_counter(), processor()
        go.set()
        ended = await asyncio.gather(*tasks)
        return gone - began, max(ended[: task.at_once]) - gone, processor() - computed, sum(sizes) / len(sizes)


class Bare:
    """vLLM's AsyncLLM, from text and picture to text, in its own way throughout."""

    def __init__(self, model: str) -> None:
        from decoding.vllm_engine import configuration
        from decoding.vllm_engine.settings import VllmSettings

        ours = configuration.ENVIRONMENT | configuration.DEFAULTS
        os.environ.update({name: value for name, value in ours.items() if name != configuration.ASKED})
        assert configuration.ASKED not in os.environ, "the plugin must not act"
        settings = VllmSettings(model, max_rows=ROWS, block_tokens=32)
        wanted = configuration.arguments(settings, CONTEXT, is_cpu=True)
        for own in ("worker_extension_cls", "mm_processor_cache_gb", "structured_outputs_config", "additional_config"):
            del wanted[own]
        self.arguments = wanted | {"scheduler_cls": "bench.vllm_timed.TimedStock"}
        self.model = model
        self._numbers = itertools.count()

    async def start(self) -> None:
        from transformers import AutoProcessor
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        self.prompt = AutoProcessor.from_pretrained(self.model).apply_chat_template(said, add_generation_prompt=True)
        self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self.arguments))
        assert not any(name.startswith("decoding.vllm_engine.runner") for name in sys.modules)

    async def close(self) -> None:
        self.llm.shutdown()

    async def perform(self, task: Task) -> tuple[float, float, float, float]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        async def one(number: int) -> float:
            sampling = SamplingParams(
                max_tokens=task.tokens, ignore_eos=True, temperature=0, output_kind=RequestOutputKind.DELTA
            )
            prompt = {"prompt": self.prompt, "multi_modal_data": {"image": picture(number)}}
            async for _ in self.llm.generate(prompt, sampling, f"bare-{next(self._numbers)}"):
                pass
            return time.perf_counter()

        began, computed = time.perf_counter(), processor()
        count = task.at_once * len(task.stacks)
        ended = await asyncio.gather(*(one(task.first + number) for number in range(count)))
        return 0.0, max(ended[: task.at_once]) - began, processor() - computed, 1.0
