"""Time of one-token answers under a load like POPE's: six questions about each image.

    python -m bench.speed.first_token --write

Each strategy answers the questions about each image in turn, on an engine with the prefix cache and on one without.
With the cache the first question is cold and the other five are warm. Serial decoding runs beside: one pass over the
whole prompt for each branch, without the extra requests of a strategy. Then all questions run at once, while AGLA's
matcher still has them cached. Every round has its own images and another order of the strategies. Ratios are taken
within a round, over plain decoding without the cache. The table shows their median, minimum and maximum over the
rounds.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from PIL import Image
from rich.progress import track

from bench.harness.baselines import time_prompts
from bench.harness.docs_page import describe_machine, write_results
from bench.harness.models import EMBEDDED, build_wide_model
from bench.per_token import PARAMETERS, STRATEGIES, TWO_BRANCH_STRATEGIES
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import build
from decoding.requests import GenerateRequest, ImageInput, Prompt, SamplingParams

CATEGORIES = ("person", "dog", "car", "chair", "cup", "bird")
IMAGES_PER_ROUND = 2
SERIAL = {"plain": 1, TWO_BRANCH_STRATEGIES[0]: 2}  # forward passes of serial decoding
SIDES = ("no cache", "cold", "warm", "all at once, no cache", "all at once")


@dataclass(frozen=True)
class QuestionTiming:
    """One row of the table."""

    model: str
    strategy: str
    side: str
    milliseconds: float  # median per question
    over_plain: float  # median of the rounds' ratios
    spread: tuple[float, float]


async def time_question(engine: HFEngine, strategy: str, prompt: Prompt) -> float:
    """Return the seconds of a one-token answer."""
    started_at = time.perf_counter()
    async with StrategyRunner(build(strategy, PARAMETERS.get(strategy, {})), engine) as runner:
        request = GenerateRequest(prompt, SamplingParams(max_tokens=1, ignore_eos=True))
        await collect_answer(runner.stream(await runner.resolve(request)))
    return time.perf_counter() - started_at


def build_prompts(image: ImageInput) -> list[Prompt]:
    """Build the six questions about an image."""
    return [Prompt.from_text(f"Is there a {category} in the image?", image) for category in CATEGORIES]


async def run_round(
    cached_engine: HFEngine, uncached_engine: HFEngine, strategy: str, images: Sequence[ImageInput]
) -> list[float]:
    """Return the seconds per question of each side."""
    prompts = [prompt for image in images for prompt in build_prompts(image)]
    uncached, cold, warm = [], [], []
    cached_engine.worker.prefix_cache.clear()
    for image in images:
        cold_prompt, *warm_prompts = build_prompts(image)
        uncached += [await time_question(uncached_engine, strategy, prompt) for prompt in (cold_prompt, *warm_prompts)]
        cold.append(await time_question(cached_engine, strategy, cold_prompt))
        warm += [await time_question(cached_engine, strategy, prompt) for prompt in warm_prompts]
    cached_engine.worker.prefix_cache.clear()
    concurrent = []
    for engine in (uncached_engine, cached_engine):
        started_at = time.perf_counter()
        await asyncio.gather(*(time_question(engine, strategy, prompt) for prompt in prompts))
        concurrent.append((time.perf_counter() - started_at) / len(prompts))
    return [*map(statistics.median, (uncached, cold, warm)), *concurrent]


def time_serial_prompts(engine: HFEngine, images: Sequence[ImageInput], branches: int) -> float:
    """Return the seconds per question of serial passes over the prompts."""
    encoded = [engine.model.encoder.encode(prompt) for image in images for prompt in build_prompts(image)]
    return statistics.median(time_prompts(engine.model, [inputs] * branches) for inputs in encoded)


async def measure(name: str, folder: Path, rounds: int) -> list[QuestionTiming]:
    """Measure all strategies on one model."""
    matcher = str(EMBEDDED / "matcher")
    cached_engine = HFEngine(HFSettings(str(folder), matcher=matcher, device="cpu"))
    uncached_engine = HFEngine(HFSettings(str(folder), matcher=matcher, device="cpu", prefix_cache_bytes=0))
    for engine in (cached_engine, uncached_engine):
        await engine.start()
    files = iter(sorted((EMBEDDED / "scenes" / "images").glob("*.png")))

    def load_images(count: int) -> list[ImageInput]:
        return [ImageInput(Image.open(file).convert("RGB")) for file in islice(files, count)]

    times: dict[tuple[str, str], list[float]] = {}
    for strategy in STRATEGIES:
        await run_round(cached_engine, uncached_engine, strategy, load_images(1))
    rng = random.Random(0)
    turns = [(load_images(IMAGES_PER_ROUND), rng.sample(STRATEGIES, len(STRATEGIES))) for _ in range(rounds)]
    for images, strategy in track([(images, strategy) for images, order in turns for strategy in order], name):
        for side, seconds in zip(SIDES, await run_round(cached_engine, uncached_engine, strategy, images), strict=True):
            times.setdefault((strategy, side), []).append(seconds)
        if strategy in SERIAL:
            times.setdefault((strategy, "serial way"), []).append(
                time_serial_prompts(uncached_engine, images, SERIAL[strategy])
            )
    for engine in (cached_engine, uncached_engine):
        await engine.close()
    plain = times["plain", SIDES[0]]
    rows = []
    for (strategy, side), side_times in sorted(times.items(), key=lambda item: STRATEGIES.index(item[0][0])):
        ratios = [seconds / plain_seconds for seconds, plain_seconds in zip(side_times, plain, strict=True)]
        spread = round(min(ratios), 3), round(max(ratios), 3)
        milliseconds = round(1000 * statistics.median(side_times), 3)
        rows.append(QuestionTiming(name, strategy, side, milliseconds, round(statistics.median(ratios), 3), spread))
    return rows


def format_table(rows: Sequence[QuestionTiming]) -> str:
    """Format the rows as a Markdown table."""
    lines = ["| model | strategy | side | ms / question | over plain (least ... greatest) |", "|---|---|---|---|---|"]
    return "\n".join(
        lines
        + [
            f"| {row.model} | {row.strategy} | {row.side} | {row.milliseconds:.1f} "
            f"| {row.over_plain:.2f} ({row.spread[0]:.2f} ... {row.spread[1]:.2f}) |"
            for row in rows
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=("embedded", "random"), default=("embedded", "random"))
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/benchmarks.md and the figures as JSON"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {"embedded": EMBEDDED / "model", "random (7 layers, 1024 wide)": build_wide_model(Path(folder))}
        rows = [
            row
            for name, path in models.items()
            if name.split()[0] in options.models
            for row in asyncio.run(measure(name, path, options.rounds))
        ]
    print(format_table(rows))
    if options.write:
        write_results("first_token", format_table(rows), {**describe_machine(), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
