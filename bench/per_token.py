"""Time per generated token of every strategy over plain decoding, beside the serial two-pass way.

    python -m bench.per_token --write

All sides of a ratio are measured in turn within one run; the median over the rounds is reported.
"""

import argparse
import asyncio
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track

from bench import serial
from bench.models import EMBEDDED, wide
from bench.page import write
from decoding.ask import Ask, Picture, Prompt, Sampling
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.registry import build
from decoding.stack import Run, collect

STRATEGIES = ("plain", "vcd", "agla", "vhr", "vdgd")
TWO_BRANCHES = ("vcd", "agla")
# A random model never ends its description; how long that is does not change the time of the answer's tokens.
PARAMETERS = {"vdgd": {"vdgd": {"description_tokens": 16}}}


@dataclass(frozen=True)
class Row:
    model: str
    strategy: str
    concurrency: int
    milliseconds: float  # per token and request, median
    over_plain: float  # median of the rounds' ratios
    spread: tuple[float, float]  # of those ratios, least and greatest
    serial_over_plain: float | None  # the serial way's time for the same tokens, over plain on this engine


async def per_token(engine: HFEngine, strategy: str, pictures: Sequence[Picture], tokens: int) -> float:
    """Seconds per token of each of the requests, which run at once; the first token is not counted."""
    prompts = [Prompt.of("Please describe this image in detail.", picture) for picture in pictures]

    async def one(prompt: Prompt) -> float:
        async with Run(build(strategy, PARAMETERS.get(strategy, {})), engine) as run:
            sampling = Sampling(max_tokens=tokens, ignore_eos=True)
            outcome = await run.resolve(Ask(prompt, sampling))
            ready.release()
            await go.wait()
            answer = await collect(run.stream(outcome))
            return answer.end.usage.seconds["decode"] / (tokens - 1)

    # The questions that a strategy asks first are not part of the time per token: all start together after them.
    ready, go = asyncio.Semaphore(0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(prompt)) for prompt in prompts]
        for _ in prompts:
            await ready.acquire()
        go.set()
    return statistics.mean(task.result() for task in tasks)


def serially(engine: HFEngine, pictures: Sequence[Picture], tokens: int) -> float:
    """Two forward passes per token, one request after the other: seconds per token of all of them."""

    def mix(logits: list[torch.Tensor]) -> torch.Tensor:
        main, branch = logits
        return (2 * main - branch).masked_fill(main < main.max() - 2.3, -torch.inf)

    prompts = [Prompt.of("Please describe this image in detail.", picture) for picture in pictures]
    encoded = [engine.model.encoder.encode(prompt) for prompt in prompts]
    return sum(serial.decode(engine.model, [one, one], mix, tokens) for one in encoded)


async def measure(name: str, folder: Path, concurrency: int, rounds: int, tokens: int) -> list[Row]:
    engine = HFEngine(HFSettings(str(folder), matcher=str(EMBEDDED / "matcher"), device="cpu"))
    await engine.start()
    shots = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[:concurrency]
    pictures = [Picture(Image.open(shot).convert("RGB")) for shot in shots]
    times: dict[str, list[float]] = {strategy: [] for strategy in (*STRATEGIES, "serial")}
    for strategy in STRATEGIES:
        await per_token(engine, strategy, pictures, 8)
    for _ in track(range(rounds), f"{name}, {concurrency} at once"):
        for strategy in STRATEGIES:
            times[strategy].append(await per_token(engine, strategy, pictures, tokens))
        times["serial"].append(serially(engine, pictures, tokens))
    await engine.close()

    def ratios(strategy: str) -> list[float]:
        return [one / plain for one, plain in zip(times[strategy], times["plain"], strict=True)]

    return [
        Row(
            name,
            strategy,
            concurrency,
            round(1000 * statistics.median(times[strategy]), 3),
            round(statistics.median(ratios(strategy)), 3),
            (round(min(ratios(strategy)), 3), round(max(ratios(strategy)), 3)),
            round(statistics.median(ratios("serial")), 2) if strategy in TWO_BRANCHES else None,
        )
        for strategy in STRATEGIES
    ]


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| model | strategy | at once | ms / token | over plain (least ... greatest) | serial way over plain |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{row.over_plain:.2f} ({row.spread[0]:.2f} ... {row.spread[1]:.2f})"
        serial_way = "" if row.serial_over_plain is None else f"{row.serial_over_plain:.2f}"
        lines.append(
            f"| {row.model} | {row.strategy} | {row.concurrency} | {row.milliseconds:.2f} | {spread} | {serial_way} |"
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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, and JSON beside it")
    chosen = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "embedded (6 layers, 256 wide)": EMBEDDED / "model",
            "random (7 layers, 1024 wide)": wide(Path(folder)),
        }
        for name, path in models.items():
            for concurrency in (1, 8):
                rows += asyncio.run(measure(name, path, concurrency, chosen.rounds, chosen.tokens))
    print(table(rows))
    if chosen.write:
        write("per_token", table(rows), {**machine(), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
