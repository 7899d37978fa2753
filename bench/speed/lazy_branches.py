"""Forward passes and processor time of captions with lazy branches, relative to branches that run at every step.

    OMP_NUM_THREADS=1 python -m bench.speed.lazy_branches --write

Both sides describe the same held-out scenes of the embedded model, in turn within each round, with an empty prefix
cache. Requests that strategies send before decoding are not part of the time. Processor time does not count waiting, so
other work on the machine hardly matters. The captions of both sides are compared.
"""

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from rich.progress import track

from bench.harness.docs_page import describe_machine, write_results
from bench.harness.models import EMBEDDED
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.plausible_contrast import PlausibleContrast
from decoding.registry import build, list_strategies
from decoding.requests import GenerateRequest, ImageInput, Prompt, SamplingParams

QUESTION = "Please describe this image in detail."
ROUNDS = {1: 24, 8: 6}  # by captions at once
MAX_TOKENS = 96
SIDES = (False, True)  # lazy or not


@dataclass(frozen=True)
class CaptionCost:
    """Captions of one round and one side."""

    texts: tuple[str, ...]
    tokens: int
    passes: int
    seconds: float  # of processor time


@dataclass(frozen=True)
class LazyCost:
    """One row of the table."""

    strategy: str
    concurrency: int
    passes: float  # per token, with branches at every step
    lazy_passes: float  # per token
    time_ratio: float  # median over the rounds of the time per token, lazy over not lazy
    quartiles: tuple[float, float]
    equal_captions: int
    captions: int


async def describe_images(engine: HFEngine, strategy: str, lazy: bool, images: Sequence[ImageInput]) -> CaptionCost:
    """Describe images concurrently, greedily."""
    stack = build(strategy, {strategy: {"lazy": lazy}})
    is_ready, start = asyncio.Semaphore(0), asyncio.Event()

    async def describe(image: ImageInput) -> Answer:
        async with StrategyRunner(stack, engine) as runner:
            outcome = await runner.resolve(
                GenerateRequest(Prompt.from_text(QUESTION, image), SamplingParams(MAX_TOKENS))
            )
            is_ready.release()
            await start.wait()
            return await collect_answer(runner.stream(outcome))

    engine.worker.prefix_cache.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(describe(image)) for image in images]
        for _ in images:
            await is_ready.acquire()
        started_at = time.process_time()
        start.set()
    seconds = time.process_time() - started_at
    answers = [task.result() for task in tasks]
    return CaptionCost(
        tuple(answer.text for answer in answers),
        sum(len(answer.tokens) for answer in answers),
        sum(answer.finish.usage.forward_passes for answer in answers),
        seconds,
    )


def summarize(strategy: str, concurrency: int, rounds: Sequence[tuple[CaptionCost, CaptionCost]]) -> LazyCost:
    """Summarize rounds of both sides."""
    pairs = [pair for eager, lazy in rounds for pair in zip(eager.texts, lazy.texts, strict=True)]
    passes, lazy_passes = (
        sum(side.passes for side in sides) / sum(side.tokens for side in sides) for sides in zip(*rounds, strict=True)
    )
    ratios = [(lazy.seconds / lazy.tokens) / (eager.seconds / eager.tokens) for eager, lazy in rounds]
    first, median, third = statistics.quantiles(ratios, n=4)
    return LazyCost(
        strategy,
        concurrency,
        round(passes, 3),
        round(lazy_passes, 3),
        round(median, 3),
        (round(first, 3), round(third, 3)),
        sum(one == other for one, other in pairs),
        len(pairs),
    )


async def measure(concurrency: int, num_rounds: int) -> list[LazyCost]:
    """Measure all strategies that have the parameter `lazy`, in a turning order."""
    names = [name for name, kind in list_strategies().items() if issubclass(kind, PlausibleContrast)]
    files = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[: concurrency * num_rounds]
    images = [ImageInput(Image.open(file).convert("RGB")) for file in files]
    engine = HFEngine(HFSettings(str(EMBEDDED / "model"), matcher=str(EMBEDDED / "matcher"), device="cpu"))
    await engine.start()
    rounds: dict[str, list[tuple[CaptionCost, CaptionCost]]] = defaultdict(list)
    try:
        for name in names:
            await describe_images(engine, name, True, images[:concurrency])
        for number in track(range(num_rounds), f"{concurrency} at once"):
            batch = images[number * concurrency : (number + 1) * concurrency]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                order = SIDES[:: 1 if number % 2 else -1]
                costs = {lazy: await describe_images(engine, name, lazy, batch) for lazy in order}
                rounds[name].append((costs[False], costs[True]))
    finally:
        await engine.close()
    return [summarize(name, concurrency, rounds[name]) for name in names]


def format_table(costs: Sequence[LazyCost]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| at once | strategy | passes per token | lazy | time per token, lazy over not lazy | equal captions |",
        "|---|---|---|---|---|---|",
    ]
    for cost in costs:
        spread = f"{cost.time_ratio:.2f} ({cost.quartiles[0]:.2f} to {cost.quartiles[1]:.2f})"
        lines.append(
            f"| {cost.concurrency} | `{cost.strategy}` | {cost.passes:.2f} | {cost.lazy_passes:.2f} | {spread} | "
            f"{cost.equal_captions} of {cost.captions} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, nargs="+", choices=ROUNDS, default=tuple(ROUNDS))
    parser.add_argument("--rounds", type=int, help=f"instead of {ROUNDS}")
    parser.add_argument("--write", action="store_true", help="store the figures in docs/ and bench/results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs = [
        cost
        for concurrency in options.at_once
        for cost in asyncio.run(measure(concurrency, options.rounds or ROUNDS[concurrency]))
    ]
    table = format_table(costs)
    print(table)
    if options.write:
        write_results("lazy_branches", table, {**describe_machine(), "rows": [asdict(cost) for cost in costs]})


if __name__ == "__main__":
    main()
