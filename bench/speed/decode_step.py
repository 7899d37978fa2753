"""Processor time of one decoding step, and the share of the forward pass, of every strategy relative to plain.

    python -m bench.speed.decode_step

Processor time does not count waiting, so other work on the machine hardly matters. One thread runs the strategies in
a different order each round. The medians of a round's steps are compared. Handing tokens to the event loop is not
included.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track

from bench.harness.models import EMBEDDED, build_wide_model
from bench.per_token import STRATEGIES, measure_per_token
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.requests import ImageInput

Steps = list[tuple[float, float]]  # seconds of a step and of its forward pass


def record_times(work: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """Wrap a function so that its processor time is appended to a list."""

    @wraps(work)
    def run(*arguments: Any) -> Any:
        started_at = time.thread_time()
        result = work(*arguments)
        times.append(time.thread_time() - started_at)
        return result

    return run


async def measure(folder: Path, concurrency: int, rounds: int, tokens: int) -> dict[str, Steps]:
    """Return the medians of each round, by strategy."""
    matcher = str(EMBEDDED / "matcher")
    engine = HFEngine(HFSettings(str(folder), matcher=matcher, device="cpu", prefix_cache_bytes=0))
    await engine.start()
    step_times: list[float] = []
    pass_times: list[float] = []
    batch, model = engine.worker.batch, engine.model
    batch.step = record_times(batch.step, step_times)  # type: ignore[method-assign]
    model.decode = record_times(model.decode, pass_times)  # type: ignore[method-assign]
    files = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[:concurrency]
    images = [ImageInput(Image.open(file).convert("RGB")) for file in files]
    rng, medians_by_strategy = random.Random(0), {strategy: Steps() for strategy in STRATEGIES}
    turns = [strategy for _ in range(rounds) for strategy in rng.sample(STRATEGIES, len(STRATEGIES))]
    for strategy in STRATEGIES:
        await measure_per_token(engine, strategy, images, 2)
    for strategy in track(turns, f"{concurrency} at once"):
        step_times.clear()
        pass_times.clear()
        await measure_per_token(engine, strategy, images, tokens)
        last = slice(1 - tokens, None)  # earlier steps belong to extra requests of the strategy
        medians_by_strategy[strategy].append((statistics.median(step_times[last]), statistics.median(pass_times[last])))
    await engine.close()
    return medians_by_strategy


def format_row(model: str, concurrency: int, strategy: str, steps: Steps, plain: Steps) -> str:
    """Format one row of the table."""
    ratios = [seconds / plain_seconds for (seconds, _), (plain_seconds, _) in zip(steps, plain, strict=True)]
    step_ms, pass_ms = (1000 * statistics.median(times) for times in zip(*steps, strict=True))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} ... {max(ratios):.2f})"
    return (
        f"| {model} | {concurrency} | {strategy} | {pass_ms:.2f} | {step_ms - pass_ms:.2f} | {step_ms:.2f} | {spread} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--at-once", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--models", nargs="+", choices=("embedded", "random"), default=("embedded", "random"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: Sequence[str] = [
        "| model | at once | strategy | the pass, ms | all after it | the step | over plain |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        models = {"embedded": EMBEDDED / "model", "random": build_wide_model(Path(folder))}
        for name in options.models:
            for concurrency in options.at_once:
                medians_by_strategy = asyncio.run(measure(models[name], concurrency, options.rounds, options.tokens))
                lines = [
                    *lines,
                    *(
                        format_row(name, concurrency, one, medians_by_strategy[one], medians_by_strategy["plain"])
                        for one in STRATEGIES
                    ),
                ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
