"""Time per generated token of every strategy over plain decoding, beside the serial two-pass way.

    python -m bench.per_token --write

All sides of a ratio are measured in turn within one run; the median over the rounds is reported. `limit` is what the
ratio would be if a step took only the reading of weights and keys at the machine's bandwidth, or its products at the
machine's arithmetic, both measured before. The serial way, and transformers' own `generate`, are measured on at
most two of the requests and multiplied: they take one after the other. Both use the engine's number of threads.
"""

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from transformers import AutoModelForImageTextToText

from bench import peak, serial
from bench.limits import Machine, Sizes
from bench.models import EMBEDDED, wide
from bench.page import write
from decoding.answer import Usage
from decoding.ask import Ask, Picture, Prompt, Sampling
from decoding.encoder import Encoded
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.hf_engine.threads import limited
from decoding.registry import build
from decoding.stack import Run, collect

QUESTION = "Please describe this image in detail."
MOST_SERIAL = 2  # requests on which what takes one after the other is measured
STRATEGIES = ("plain", "vcd", "agla", "vhr", "vdgd")
TWO_BRANCHES = ("vcd", "agla")
# A random model never ends its description; how long that is does not change the time of the answer's tokens.
PARAMETERS = {"vdgd": {"vdgd": {"description_tokens": 16}}}


@dataclass(frozen=True)
class Row:
    model: str
    strategy: str
    concurrency: int
    threads: int
    milliseconds: float  # per token and request, median
    over_plain: float  # median of the rounds' ratios
    spread: tuple[float, float]  # of those ratios, least and greatest
    serial_over_plain: float | None  # the serial way's time for the same tokens, over plain on this engine
    limit: float  # over plain
    rows_per_token: float  # run through the model, prompts included
    peak_megabytes: float  # of the process


async def per_token(engine: HFEngine, strategy: str, pictures: Sequence[Picture], tokens: int) -> tuple[float, Usage]:
    """Seconds per token of each of the requests, which run at once, and what one cost; the first token is not timed."""
    prompts = [Prompt.of(QUESTION, picture) for picture in pictures]

    async def one(prompt: Prompt) -> Usage:
        async with Run(build(strategy, PARAMETERS.get(strategy, {})), engine) as run:
            sampling = Sampling(max_tokens=tokens, ignore_eos=True)
            outcome = await run.resolve(Ask(prompt, sampling))
            ready.release()
            await go.wait()
            return (await collect(run.stream(outcome))).end.usage

    # The questions that a strategy asks first are not part of the time per token: all start together after them.
    ready, go = asyncio.Semaphore(0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(prompt)) for prompt in prompts]
        for _ in prompts:
            await ready.acquire()
        go.set()
    usages = [task.result() for task in tasks]
    return statistics.mean(usage.seconds["decode"] for usage in usages) / (tokens - 1), usages[0]


def serially(model: Model, pictures: Sequence[Picture], tokens: int) -> float:
    """Two forward passes per token, one request after the other: seconds per token of all of them."""

    def mix(logits: list[torch.Tensor]) -> torch.Tensor:
        main, branch = logits
        return (2 * main - branch).masked_fill(main < main.max() - 2.3, -torch.inf)

    some = pictures[:MOST_SERIAL]
    encoded = [model.encoder.encode(Prompt.of(QUESTION, picture)) for picture in some]
    return sum(serial.decode(model, [one, one], mix, tokens) for one in encoded) * len(pictures) / len(some)


@torch.inference_mode()
def generated(network: Any, model: Model, pictures: Sequence[Picture], tokens: int) -> float:
    """`network` by itself, one request after the other: seconds per token of all of them."""

    def seconds(encoded: Encoded, length: int) -> float:
        began = time.perf_counter()
        network.generate(
            input_ids=encoded.ids[None],
            **encoded.extras,
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
        )
        return time.perf_counter() - began

    some = pictures[:MOST_SERIAL]
    encoded = [model.encoder.encode(Prompt.of(QUESTION, picture)) for picture in some]
    spent = sum(seconds(one, tokens) - seconds(one, 1) for one in encoded)
    return spent / (tokens - 1) * len(pictures) / len(some)


async def measure(name: str, folder: Path, concurrency: int, rounds: int, tokens: int) -> list[Row]:
    engine = HFEngine(HFSettings(str(folder), matcher=str(EMBEDDED / "matcher"), device="cpu", prefix_cache_bytes=0))
    await engine.start()
    model = engine.model
    bare = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    shots = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[:concurrency]
    pictures = [Picture(Image.open(shot).convert("RGB")) for shot in shots]
    others: dict[str, Callable[[], float]] = {
        "serial": lambda: serially(model, pictures, tokens),
        "transformers' generate": lambda: generated(bare, model, pictures, tokens),
    }
    times: dict[str, list[float]] = {name: [] for name in (*STRATEGIES, *others)}
    peaks, usages = dict.fromkeys(times, 0.0), dict[str, Usage]()
    with limited(model.step_threads):
        machine = Machine.measured()
    for strategy in STRATEGIES:
        await per_token(engine, strategy, pictures, 8)
    for _ in track(range(rounds), f"{name}, {concurrency} at once"):
        for strategy in STRATEGIES:
            peak.reset()
            seconds, usages[strategy] = await per_token(engine, strategy, pictures, tokens)
            times[strategy].append(seconds)
            peaks[strategy] = max(peaks[strategy], peak.megabytes())
        for other, measured in others.items():
            peak.reset()
            with limited(model.step_threads):
                times[other].append(measured())
            peaks[other] = max(peaks[other], peak.megabytes())
    await engine.close()
    columns, sizes = usages["plain"].prompt_tokens + tokens // 2, Sizes.of(model)

    def ratios(strategy: str) -> list[float]:
        return [one / plain for one, plain in zip(times[strategy], times["plain"], strict=True)]

    def limit(strategy: str) -> float:
        rows = concurrency * (2 if strategy in TWO_BRANCHES else 1)
        return sizes.seconds(rows, columns, machine) / sizes.seconds(concurrency, columns, machine)

    return [
        Row(
            name,
            strategy,
            concurrency,
            model.step_threads,
            round(1000 * statistics.median(times[strategy]), 3),
            round(statistics.median(ratios(strategy)), 3),
            (round(min(ratios(strategy)), 3), round(max(ratios(strategy)), 3)),
            round(statistics.median(ratios("serial")), 2) if strategy in TWO_BRANCHES else None,
            round(limit(strategy), 3),
            round(usages[strategy].forward_passes / usages[strategy].steps, 2) if strategy in usages else 1.0,
            round(peaks[strategy]),
        )
        for strategy in times
        if strategy != "serial"
    ]


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| model | strategy | at once | threads | ms / token | over plain (least ... greatest) | serial way over plain "
        "| limit | rows / token | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{row.over_plain:.2f} ({row.spread[0]:.2f} ... {row.spread[1]:.2f})"
        serial_way = "" if row.serial_over_plain is None else f"{row.serial_over_plain:.2f}"
        lines.append(
            f"| {row.model} | {row.strategy} | {row.concurrency} | {row.threads} | {row.milliseconds:.2f} | {spread} "
            f"| {serial_way} | {row.limit:.2f} | {row.rows_per_token:.2f} | {row.peak_megabytes:.0f} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, object]:
    return {
        "date": date.today().isoformat(),
        "machine": f"a CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("onlyseen", "torch", "transformers")},
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--at-once", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--models", nargs="+", choices=("embedded", "random"), default=("embedded", "random"))
    parser.add_argument("--threads", type=int, help="for prompts and steps alike; else as the engine chooses")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, and JSON beside it")
    chosen = parser.parse_args()
    if chosen.threads:
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # as a user would have set it
        torch.set_num_threads(chosen.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "embedded (6 layers, 256 wide)": EMBEDDED / "model",
            "random (7 layers, 1024 wide)": wide(Path(folder)),
        }
        for name, path in models.items():
            for concurrency in chosen.at_once if name.split()[0] in chosen.models else ():
                rows += asyncio.run(measure(name, path, concurrency, chosen.rounds, chosen.tokens))
    print(table(rows))
    if chosen.write:
        write("per_token", table(rows), {**machine(), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
