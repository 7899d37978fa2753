"""Time per token of every strategy relative to plain decoding, beside serial two-pass decoding.

    python -m bench.per_token --write

All sides of a ratio are measured in turn in one run, in a different order each round. The median over the rounds is
reported. `limit` is the ratio if a step were bound only by memory bandwidth or by arithmetic, both measured before.
Serial decoding and transformers' own `generate` run one request after the other. They are measured on at most two of
the requests and multiplied. Both use the engine's number of threads. Many concurrent requests take long and vary
little, so they get fewer rounds.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from transformers import AutoModelForImageTextToText
from transformers.generation.streamers import BaseStreamer

from bench.harness.baselines import HardwareLimits, StepSizes, time_decoding
from bench.harness.docs_page import describe_machine, write_results
from bench.harness.models import EMBEDDED, build_wide_model
from decoding.hf_engine.cpu.step_threads import limit_threads
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.outputs import Usage
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import build
from decoding.requests import GenerateRequest, ImageInput, Prompt, SamplingParams

QUESTION = "Please describe this image in detail."
ROUNDS = {1: 31, 8: 5, 32: 3}  # by requests at once
MAX_SERIAL_REQUESTS = 2  # the serial sides are measured on these and multiplied
STRATEGIES = ("plain", "vcd", "agla", "vhr", "vdgd")
TWO_BRANCH_STRATEGIES = ("vcd", "agla")
# A random model never ends its description; its length does not change the time of the answer's tokens.
PARAMETERS = {"vdgd": {"vdgd": {"description_tokens": 16}}}
PROC_STATUS, PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class StrategyTiming:
    """One row of the table."""

    model: str
    strategy: str
    concurrency: int
    threads: int
    milliseconds: float  # median per token and request
    first_token: float | None  # median milliseconds to the first token, extra requests included
    tokens_per_second: float  # of all requests together, after the first token
    over_plain: float  # median of the rounds' ratios
    spread: tuple[float, float]  # smallest and largest ratio
    serial_over_plain: float | None  # time of serial decoding over plain on this engine
    limit: float  # lower bound of the ratio to plain
    rows_per_token: float  # rows run through the model, prompts included
    peak_megabytes: float  # of the process


@dataclass(frozen=True)
class RequestTiming:
    """Mean times of concurrent requests, and the usage of one of them."""

    first: float  # seconds to the first token
    each: float  # seconds of each token after it
    usage: Usage


async def measure_per_token(
    engine: HFEngine, strategy: str, images: Sequence[ImageInput], tokens: int
) -> RequestTiming:
    """Run one request per image concurrently and measure the time per token."""
    prompts = [Prompt.from_text(QUESTION, image) for image in images]

    async def start_request(prompt: Prompt) -> tuple[float, Usage]:
        async with StrategyRunner(build(strategy, PARAMETERS.get(strategy, {})), engine) as runner:
            sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
            outcome = await runner.resolve(GenerateRequest(prompt, sampling))
            ready.release()
            await start.wait()
            answer = await collect_answer(runner.stream(outcome))
            return runner.prior_usage.seconds["prepare"], answer.finish.usage

    # A strategy's extra requests are not part of the time per token. All requests start decoding after them.
    ready, start = asyncio.Semaphore(0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(start_request(prompt)) for prompt in prompts]
        for _ in prompts:
            await ready.acquire()
        start.set()
    prepared, usages = zip(*(task.result() for task in tasks), strict=True)
    phases = {phase: statistics.mean(usage.seconds[phase] for usage in usages) for phase in ("prefill", "decode")}
    queued = statistics.mean(usage.seconds["queue"] for usage in usages)
    return RequestTiming(
        statistics.mean(prepared) + queued + phases["prefill"], phases["decode"] / (tokens - 1), usages[0]
    )


def time_serial_decoding(model: Model, images: Sequence[ImageInput], tokens: int) -> float:
    """Measure serial decoding with two forward passes per token.

    Args:
        model: The engine's model.
        images: One image per request.
        tokens: Tokens of each answer.

    Returns:
        Seconds per token of all requests.
    """

    def mix(logits: list[torch.Tensor]) -> torch.Tensor:
        main, branch = logits
        return (2 * main - branch).masked_fill(main < main.max() - 2.3, -torch.inf)

    sample = images[:MAX_SERIAL_REQUESTS]
    encoded = [model.encoder.encode(Prompt.from_text(QUESTION, image)) for image in sample]
    seconds = sum(time_decoding(model, [inputs, inputs], mix, tokens) for inputs in encoded)
    return seconds * len(images) / len(sample)


class TokenTimestamps(BaseStreamer):  # type: ignore[misc]
    """Records when `generate` emits tokens; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def time_transformers_generate(network: Any, model: Model, images: Sequence[ImageInput], tokens: int) -> float:
    """Measure `generate`, one request after the other.

    Args:
        network: The transformers model.
        model: The engine's model, for its encoder.
        images: One image per request.
        tokens: Tokens of each answer.

    Returns:
        Seconds per token of all requests.
    """

    def measure_seconds(image: ImageInput) -> float:
        encoded, timestamps = model.encoder.encode(Prompt.from_text(QUESTION, image)), TokenTimestamps()
        network.generate(
            input_ids=encoded.ids[None],
            **encoded.extras,
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            streamer=timestamps,
        )
        _, first, *_, last = timestamps.times
        return (last - first) / (tokens - 1)

    sample = images[:MAX_SERIAL_REQUESTS]
    return statistics.mean(map(measure_seconds, sample)) * len(images)


async def measure(name: str, folder: Path, concurrency: int, rounds: int, tokens: int) -> list[StrategyTiming]:
    """Measure all sides on one model at one concurrency."""
    engine = HFEngine(HFSettings(str(folder), matcher=str(EMBEDDED / "matcher"), device="cpu", prefix_cache_bytes=0))
    await engine.start()
    model = engine.model
    plain_model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    files = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[:concurrency]
    images = [ImageInput(Image.open(file).convert("RGB")) for file in files]
    times: dict[str, list[float]] = {}
    first_tokens: dict[str, list[float]] = {}
    peak_by_side, usages = dict[str, float](), dict[str, Usage]()

    async def time_strategy(strategy: str) -> float:
        timing = await measure_per_token(engine, strategy, images, tokens)
        first_tokens.setdefault(strategy, []).append(timing.first)
        usages[strategy] = timing.usage
        return timing.each

    async def time_alone(work: Callable[[], float]) -> float:
        with limit_threads(model.step_threads):
            return work()

    sides: dict[str, Callable[[], Awaitable[float]]] = {
        **{strategy: partial(time_strategy, strategy) for strategy in STRATEGIES},
        "serial": partial(time_alone, lambda: time_serial_decoding(model, images, tokens)),
        "transformers' generate": partial(
            time_alone, lambda: time_transformers_generate(plain_model, model, images, tokens)
        ),
    }
    with limit_threads(model.step_threads):
        limits = HardwareLimits.measure()
    for strategy in STRATEGIES:
        await measure_per_token(engine, strategy, images[:8], 2)
    rng = random.Random(0)
    turns = [side for _ in range(rounds) for side in rng.sample(list(sides), len(sides))]
    for side in track(turns, f"{name}, {concurrency} at once"):
        reset_peak()
        times.setdefault(side, []).append(await sides[side]())
        peak_by_side[side] = max(peak_by_side.get(side, 0), read_peak_megabytes())
    await engine.close()
    sizes = StepSizes.of(model)

    def compute_ratios(side: str) -> list[float]:
        return [seconds / plain for seconds, plain in zip(times[side], times["plain"], strict=True)]

    def compute_minimum_seconds(side: str) -> float:
        rows = concurrency * (2 if side in TWO_BRANCH_STRATEGIES else 1)
        columns = usages.get(side, usages["plain"]).prompt_tokens + tokens // 2
        return sizes.compute_minimum_step_seconds(rows, columns, limits)

    def build_row(side: str) -> StrategyTiming:
        each, usage = statistics.median(times[side]), usages.get(side)
        return StrategyTiming(
            name,
            side,
            concurrency,
            model.step_threads,
            round(1000 * each, 3),
            round(1000 * statistics.median(first_tokens[side]), 1) if usage else None,
            round(concurrency / each, 1),
            round(statistics.median(compute_ratios(side)), 3),
            (round(min(compute_ratios(side)), 3), round(max(compute_ratios(side)), 3)),
            round(statistics.median(compute_ratios("serial")), 2) if side in TWO_BRANCH_STRATEGIES else None,
            round(compute_minimum_seconds(side) / compute_minimum_seconds("plain"), 3),
            round(usage.forward_passes / usage.steps, 2) if usage else 1.0,
            round(peak_by_side[side]),
        )

    return [build_row(side) for side in sides if side != "serial"]


def reset_peak() -> None:
    """Reset the peak."""
    PROC_CLEAR_REFS.write_text("5")


def read_peak_megabytes() -> float:
    """Return the peak since the last reset in megabytes."""
    line = next(line for line in PROC_STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def format_table(rows: Sequence[StrategyTiming]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "| model | strategy | at once | threads | first token, ms | ms / token | tokens / s "
        "| over plain (least ... greatest) | serial way over plain | limit | rows / token | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{row.over_plain:.2f} ({row.spread[0]:.2f} ... {row.spread[1]:.2f})"
        serial_cell = "" if row.serial_over_plain is None else f"{row.serial_over_plain:.2f}"
        first = "" if row.first_token is None else f"{row.first_token:.0f}"
        lines.append(
            f"| {row.model} | {row.strategy} | {row.concurrency} | {row.threads} | {first} | {row.milliseconds:.2f} "
            f"| {row.tokens_per_second:.0f} | {spread} | {serial_cell} | {row.limit:.2f} "
            f"| {row.rows_per_token:.2f} | {row.peak_megabytes:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, help="rounds of each side; by default fewer with more concurrent requests"
    )
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--at-once", type=int, nargs="+", choices=tuple(ROUNDS), default=tuple(ROUNDS))
    parser.add_argument("--models", nargs="+", choices=("embedded", "random"), default=("embedded", "random"))
    parser.add_argument("--threads", type=int, help="threads for prompts and steps; by default the engine chooses")
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/benchmarks.md and the figures as JSON"
    )
    options = parser.parse_args()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the engine reads it, as if a user had set it
        torch.set_num_threads(options.threads)
    rows: list[StrategyTiming] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "embedded (6 layers, 256 wide)": EMBEDDED / "model",
            "random (7 layers, 1024 wide)": build_wide_model(Path(folder)),
        }
        for name, path in models.items():
            for concurrency in options.at_once if name.split()[0] in options.models else ():
                rows += asyncio.run(
                    measure(name, path, concurrency, options.rounds or ROUNDS[concurrency], options.tokens)
                )
    print(format_table(rows))
    if options.write:
        write_results("per_token", format_table(rows), {**describe_machine(), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
