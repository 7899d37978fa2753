"""Time per generated token of every strategy over plain decoding, beside the serial two-pass way.

    python -m bench.per_token --write

All sides of a ratio are measured in turn within one run, in another order each round; the median over the rounds is
reported. `limit` is what the ratio would be if a step took only the reading of weights and keys at the machine's
bandwidth, or its products at the machine's arithmetic, both measured before. The serial way, and transformers' own
`generate`, are measured on at most two of the requests and multiplied: they take one after the other. Both use the
engine's number of threads. Many requests at once take long and vary little, so they get fewer rounds.
"""

import argparse
import asyncio
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from transformers import AutoModelForImageTextToText
from transformers.generation.streamers import BaseStreamer

from bench import peak, serial
from bench.limits import Machine, Sizes
from bench.models import EMBEDDED, wide
from bench.page import commit, write
from decoding.answer import Usage
from decoding.ask import Ask, Picture, Prompt, Sampling
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.hf_engine.threads import limited
from decoding.registry import build
from decoding.stack import Run, collect

QUESTION = "Please describe this image in detail."
ROUNDS = {1: 31, 8: 5, 32: 3}  # by requests at once
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
    first_token: float | None  # milliseconds from the question to it, all that the strategy asks first included, median
    tokens_per_second: float  # after the first, of all requests together
    over_plain: float  # median of the rounds' ratios
    spread: tuple[float, float]  # of those ratios, least and greatest
    serial_over_plain: float | None  # the serial way's time for the same tokens, over plain on this engine
    limit: float  # over plain
    rows_per_token: float  # run through the model, prompts included
    peak_megabytes: float  # of the process


@dataclass(frozen=True)
class Timed:
    first: float  # seconds to the first token
    each: float  # seconds of each token after it
    usage: Usage


async def per_token(engine: HFEngine, strategy: str, pictures: Sequence[Picture], tokens: int) -> Timed:
    """Of each of the requests, which run at once; means over them, and what one of them cost."""
    prompts = [Prompt.of(QUESTION, picture) for picture in pictures]

    async def one(prompt: Prompt) -> tuple[float, Usage]:
        async with Run(build(strategy, PARAMETERS.get(strategy, {})), engine) as run:
            sampling = Sampling(max_tokens=tokens, ignore_eos=True)
            outcome = await run.resolve(Ask(prompt, sampling))
            ready.release()
            await go.wait()
            return run.spent.seconds["prepare"], (await collect(run.stream(outcome))).end.usage

    # The questions that a strategy asks first are not part of the time per token: all start together after them.
    ready, go = asyncio.Semaphore(0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(prompt)) for prompt in prompts]
        for _ in prompts:
            await ready.acquire()
        go.set()
    prepared, usages = zip(*(task.result() for task in tasks), strict=True)
    phases = {phase: statistics.mean(usage.seconds[phase] for usage in usages) for phase in ("prefill", "decode")}
    queued = statistics.mean(usage.seconds["queue"] for usage in usages)
    return Timed(statistics.mean(prepared) + queued + phases["prefill"], phases["decode"] / (tokens - 1), usages[0])


def serially(model: Model, pictures: Sequence[Picture], tokens: int) -> float:
    """Two forward passes per token, one request after the other: seconds per token of all of them."""

    def mix(logits: list[torch.Tensor]) -> torch.Tensor:
        main, branch = logits
        return (2 * main - branch).masked_fill(main < main.max() - 2.3, -torch.inf)

    some = pictures[:MOST_SERIAL]
    encoded = [model.encoder.encode(Prompt.of(QUESTION, picture)) for picture in some]
    return sum(serial.decode(model, [one, one], mix, tokens) for one in encoded) * len(pictures) / len(some)


class Moments(BaseStreamer):  # type: ignore[misc]
    """When `generate` hands out its tokens; the prompt comes first."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def generated(network: Any, model: Model, pictures: Sequence[Picture], tokens: int) -> float:
    """`network` by itself, one request after the other: seconds per token of all of them."""

    def seconds(picture: Picture) -> float:
        encoded, moments = model.encoder.encode(Prompt.of(QUESTION, picture)), Moments()
        network.generate(
            input_ids=encoded.ids[None],
            **encoded.extras,
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            streamer=moments,
        )
        _, first, *_, last = moments.seen
        return (last - first) / (tokens - 1)

    some = pictures[:MOST_SERIAL]
    return statistics.mean(map(seconds, some)) * len(pictures)


async def measure(name: str, folder: Path, concurrency: int, rounds: int, tokens: int) -> list[Row]:
    engine = HFEngine(HFSettings(str(folder), matcher=str(EMBEDDED / "matcher"), device="cpu", prefix_cache_bytes=0))
    await engine.start()
    model = engine.model
    bare = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    shots = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[:concurrency]
    pictures = [Picture(Image.open(shot).convert("RGB")) for shot in shots]
    times: dict[str, list[float]] = {}
    firsts: dict[str, list[float]] = {}
    peaks, usages = dict[str, float](), dict[str, Usage]()

    async def by(strategy: str) -> float:
        timed = await per_token(engine, strategy, pictures, tokens)
        firsts.setdefault(strategy, []).append(timed.first)
        usages[strategy] = timed.usage
        return timed.each

    async def alone(work: Callable[[], float]) -> float:
        with limited(model.step_threads):
            return work()

    sides: dict[str, Callable[[], Awaitable[float]]] = {
        **{strategy: partial(by, strategy) for strategy in STRATEGIES},
        "serial": partial(alone, lambda: serially(model, pictures, tokens)),
        "transformers' generate": partial(alone, lambda: generated(bare, model, pictures, tokens)),
    }
    with limited(model.step_threads):
        machine = Machine.measured()
    for strategy in STRATEGIES:
        await per_token(engine, strategy, pictures[:8], 2)
    order = random.Random(0)
    turns = [side for _ in range(rounds) for side in order.sample(list(sides), len(sides))]
    for side in track(turns, f"{name}, {concurrency} at once"):
        peak.reset()
        times.setdefault(side, []).append(await sides[side]())
        peaks[side] = max(peaks.get(side, 0), peak.megabytes())
    await engine.close()
    sizes = Sizes.of(model)

    def ratios(side: str) -> list[float]:
        return [one / plain for one, plain in zip(times[side], times["plain"], strict=True)]

    def least(side: str) -> float:
        rows = concurrency * (2 if side in TWO_BRANCHES else 1)
        columns = usages.get(side, usages["plain"]).prompt_tokens + tokens // 2
        return sizes.seconds(rows, columns, machine)

    def row(side: str) -> Row:
        each, usage = statistics.median(times[side]), usages.get(side)
        return Row(
            name,
            side,
            concurrency,
            model.step_threads,
            round(1000 * each, 3),
            round(1000 * statistics.median(firsts[side]), 1) if usage else None,
            round(concurrency / each, 1),
            round(statistics.median(ratios(side)), 3),
            (round(min(ratios(side)), 3), round(max(ratios(side)), 3)),
            round(statistics.median(ratios("serial")), 2) if side in TWO_BRANCHES else None,
            round(least(side) / least("plain"), 3),
            round(usage.forward_passes / usage.steps, 2) if usage else 1.0,
            round(peaks[side]),
        )

    return [row(side) for side in sides if side != "serial"]


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| model | strategy | at once | threads | first token, ms | ms / token | tokens / s "
        "| over plain (least ... greatest) | serial way over plain | limit | rows / token | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{row.over_plain:.2f} ({row.spread[0]:.2f} ... {row.spread[1]:.2f})"
        serial_way = "" if row.serial_over_plain is None else f"{row.serial_over_plain:.2f}"
        first = "" if row.first_token is None else f"{row.first_token:.0f}"
        lines.append(
            f"| {row.model} | {row.strategy} | {row.concurrency} | {row.threads} | {first} | {row.milliseconds:.2f} "
            f"| {row.tokens_per_second:.0f} | {spread} | {serial_way} | {row.limit:.2f} "
            f"| {row.rows_per_token:.2f} | {row.peak_megabytes:.0f} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, object]:
    return {
        "date": date.today().isoformat(),
        "machine": f"a CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads, "
        f"load average {os.getloadavg()[0]:.1f} at the end",
        "versions": {name: version(name) for name in ("onlyseen", "torch", "transformers")} | {"commit": commit()},
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="of each; else fewer the more are asked at once")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--at-once", type=int, nargs="+", choices=tuple(ROUNDS), default=tuple(ROUNDS))
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
                rows += asyncio.run(
                    measure(name, path, concurrency, chosen.rounds or ROUNDS[concurrency], chosen.tokens)
                )
    print(table(rows))
    if chosen.write:
        write("per_token", table(rows), {**machine(), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
