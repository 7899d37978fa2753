"""One of the two compared engines in a process of its own: OnlySeen's, or stock vLLM."""

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

from bench.harness.models import EMBEDDED

QUESTION = "Please describe this image in detail."
SCENES = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))
ROWS, CONTEXT = 64, 1024


@dataclass(frozen=True)
class LoadTask:
    """Concurrent requests of each stack. Only those of the first stack are timed; the others keep running.

    Attributes:
        stacks: Strategy stacks.
        at_once: Requests of each stack.
        tokens: Tokens of each answer.
        first_image: Number of the first image. No image is used twice, so caches cannot answer.
    """

    stacks: tuple[str, ...]
    at_once: int
    tokens: int
    first_image: int


@dataclass(frozen=True)
class TaskTiming:
    """Times of the requests of the first stack, in seconds.

    Attributes:
        preparing: Time until the extra requests of the strategies are done.
        answering: Time from then to the last token.
        processor_seconds: Processor time of all processes of the engine while answering.
        rows: Rows of each request in a decoding step.
        scheduling: Processor time of the scheduler per step.
        steps: Number of steps.
    """

    preparing: float
    answering: float
    processor_seconds: float
    rows: float
    scheduling: float
    steps: int

    def compute_tokens_per_second(self, task: LoadTask) -> float:
        """Return the output tokens per second of answering."""
        return task.at_once * task.tokens / self.answering

    def compute_total_tokens_per_second(self, task: LoadTask) -> float:
        """Return the output tokens per second, extra requests included."""
        return task.at_once * task.tokens / (self.preparing + self.answering)

    def compute_tokens_per_processor_second(self, task: LoadTask) -> float:
        """Return the output tokens per processor second of answering."""
        return task.at_once * task.tokens / self.processor_seconds


class EngineProcess:
    """Handle of the process, which communicates through a pipe."""

    def __init__(self, model: str, is_onlyseen: bool, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        clock = folder / ("onlyseen" if is_onlyseen else "stock")
        self._process = context.Process(target=run_engine, args=(remote, model, is_onlyseen, clock))
        self._process.start()
        self._receive()

    def run(self, task: LoadTask) -> TaskTiming:
        """Run a task and return its timing."""
        self._connection.send(task)
        return self._receive()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()

    def _receive(self) -> Any:
        while not self._connection.poll(1):
            if not self._process.is_alive():
                raise RuntimeError("The engine process ended unexpectedly.")
        message = self._connection.recv()
        if isinstance(message, str):
            raise RuntimeError(message)
        return message


def run_engine(connection: Connection, model: str, is_onlyseen: bool, clock: Path) -> None:
    """Run an engine in this process until the pipe sends None."""
    from bench.vllm_engine import timed_schedulers

    timed_schedulers.create_clock(clock)
    asyncio.run(handle_tasks(connection, OnlySeenEngine(model) if is_onlyseen else StockEngine(model)))


async def handle_tasks(connection: Connection, engine: OnlySeenEngine | StockEngine) -> None:
    """Receive tasks and send their timings."""
    from bench.vllm_engine import timed_schedulers

    await engine.start()
    connection.send(True)
    while (task := await asyncio.to_thread(connection.recv)) is not None:
        before = timed_schedulers.read_clock()
        try:
            preparing, answering, computing, rows = await engine.run_task(task)
        except Exception as error:
            connection.send(repr(error))
            raise
        scheduling, updating, steps = (
            now - then for now, then in zip(timed_schedulers.read_clock(), before, strict=True)
        )
        connection.send(TaskTiming(preparing, answering, computing, rows, (scheduling + updating) / steps, int(steps)))
    await engine.close()


def measure_processor_seconds() -> float:
    """Return the processor seconds of this process and its children."""
    this_process = psutil.Process()
    times = (process.cpu_times() for process in (this_process, *this_process.children(recursive=True)))
    return sum(time.user + time.system for time in times)


def load_image(number: int) -> Any:
    """Return the image of a number. A corner's colour makes each number another image."""
    image = Image.open(SCENES[number % len(SCENES)]).convert("RGB")
    image.putpixel((0, 0), (number % 251, number // 251 % 251, 7))
    return image


class OnlySeenEngine:
    """OnlySeen's vLLM engine."""

    def __init__(self, model: str) -> None:
        from decoding.vllm_engine.engine import VllmEngine
        from decoding.vllm_engine.settings import VllmSettings

        matcher, scheduler = str(EMBEDDED / "matcher"), "bench.vllm_engine.timed_schedulers.TimedGangScheduler"
        settings = VllmSettings(
            model, matcher, context=CONTEXT, max_rows=ROWS, max_waiting=4096, block_tokens=32, scheduler=scheduler
        )
        self.engine = VllmEngine(settings)

    async def start(self) -> None:
        await self.engine.start()

    async def close(self) -> None:
        await self.engine.close()

    async def run_task(self, task: LoadTask) -> tuple[float, float, float, float]:
        """Run a task and return (preparing, answering, processor seconds, rows)."""
        from decoding.pipeline.runner import StrategyRunner, collect_answer
        from decoding.registry import build
        from decoding.requests import GenerateRequest, ImageInput, Prompt, SamplingParams

        ready, start, sizes = asyncio.Semaphore(0), asyncio.Event(), []

        async def run_request(stack: str, number: int) -> float:
            sampling = SamplingParams(max_tokens=task.tokens, ignore_eos=True)
            async with StrategyRunner(build(stack, {}), self.engine) as runner:
                outcome = await runner.resolve(
                    GenerateRequest(Prompt.from_text(QUESTION, ImageInput(load_image(number))), sampling)
                )
                assert isinstance(outcome, GenerateRequest)
                ready.release()
                await start.wait()
                await collect_answer(runner.stream(outcome))
                sizes.append(1 + len(outcome.branches)) if stack == task.stacks[0] else None
                return time.perf_counter()

        numbers = itertools.count(task.first_image)
        started_at = time.perf_counter()
        coroutines = [run_request(stack, next(numbers)) for stack in task.stacks for _ in range(task.at_once)]
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        for _ in tasks:
            await ready.acquire()
        prepared_at, computed_before = time.perf_counter(), measure_processor_seconds()
        start.set()
        finished_at = await asyncio.gather(*tasks)
        return (
            prepared_at - started_at,
            max(finished_at[: task.at_once]) - prepared_at,
            measure_processor_seconds() - computed_before,
            sum(sizes) / len(sizes),
        )


class StockEngine:
    """vLLM's AsyncLLM with its own processing from text and image to text."""

    def __init__(self, model: str) -> None:
        from decoding.vllm_engine.frontend import engine_args
        from decoding.vllm_engine.plugin import ENABLE_VARIABLE
        from decoding.vllm_engine.settings import VllmSettings

        environment = engine_args.ENVIRONMENT | engine_args.ENVIRONMENT_DEFAULTS
        os.environ.update({name: value for name, value in environment.items() if name != ENABLE_VARIABLE})
        assert ENABLE_VARIABLE not in os.environ, "the plugin must be off"
        settings = VllmSettings(model, max_rows=ROWS, block_tokens=32)
        arguments = engine_args.build_engine_args(settings, CONTEXT, is_cpu=True)
        for key in ("worker_extension_cls", "mm_processor_cache_gb", "structured_outputs_config", "additional_config"):
            del arguments[key]
        self.arguments = arguments | {"scheduler_cls": "bench.vllm_engine.timed_schedulers.TimedStockScheduler"}
        self.model = model
        self._numbers = itertools.count()

    async def start(self) -> None:
        from transformers import AutoProcessor
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        self.prompt = AutoProcessor.from_pretrained(self.model).apply_chat_template(
            messages, add_generation_prompt=True
        )
        self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self.arguments))
        assert not any(name.startswith("decoding.vllm_engine.worker.model_runner_patch") for name in sys.modules)

    async def close(self) -> None:
        self.llm.shutdown()

    async def run_task(self, task: LoadTask) -> tuple[float, float, float, float]:
        """Run a task and return (0, answering, processor seconds, 1)."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        async def run_request(number: int) -> float:
            sampling = SamplingParams(
                max_tokens=task.tokens, ignore_eos=True, temperature=0, output_kind=RequestOutputKind.DELTA
            )
            prompt = {"prompt": self.prompt, "multi_modal_data": {"image": load_image(number)}}
            async for _ in self.llm.generate(prompt, sampling, f"bare-{next(self._numbers)}"):
                pass
            return time.perf_counter()

        started_at, computed_before = time.perf_counter(), measure_processor_seconds()
        count = task.at_once * len(task.stacks)
        finished_at = await asyncio.gather(*(run_request(task.first_image + number) for number in range(count)))
        return 0.0, max(finished_at[: task.at_once]) - started_at, measure_processor_seconds() - computed_before, 1.0
