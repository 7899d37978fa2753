"""Processor time of one step of decoding, and how much of it is the model's pass, of every strategy over plain.

    python -m bench.step

For machines that do other work: waiting does not count. One thread, the strategies in another order each round; the
medians of a round's steps are compared. What hands the tokens to the event loop is not in it.
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

from bench.models import EMBEDDED, wide
from bench.per_token import STRATEGIES, per_token
from decoding.ask import Picture
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings

Steps = list[tuple[float, float]]  # seconds of a step, and of its pass


def clocked(work: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    @wraps(work)
    def run(*arguments: Any) -> Any:
        began = time.thread_time()
        done = work(*arguments)
        times.append(time.thread_time() - began)
        return done

    return run


async def measure(folder: Path, concurrency: int, rounds: int, tokens: int) -> dict[str, Steps]:
    """By strategy, the medians of each round."""
    matcher = str(EMBEDDED / "matcher")
    engine = HFEngine(HFSettings(str(folder), matcher=matcher, device="cpu", prefix_cache_bytes=0))
    await engine.start()
    whole: list[float] = []
    passes: list[float] = []
    batch, model = engine.worker.batch, engine.model
    batch.step = clocked(batch.step, whole)  # type: ignore[method-assign]
    model.decode = clocked(model.decode, passes)  # type: ignore[method-assign]
    shots = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))[:concurrency]
    pictures = [Picture(Image.open(shot).convert("RGB")) for shot in shots]
    chance, found = random.Random(0), {strategy: Steps() for strategy in STRATEGIES}
    turns = [strategy for _ in range(rounds) for strategy in chance.sample(STRATEGIES, len(STRATEGIES))]
    for strategy in STRATEGIES:
        await per_token(engine, strategy, pictures, 2)
    for strategy in track(turns, f"{concurrency} at once"):
        whole.clear()
        passes.clear()
        await per_token(engine, strategy, pictures, tokens)
        last = slice(1 - tokens, None)  # those before are of questions that the strategy asks first
        found[strategy].append((statistics.median(whole[last]), statistics.median(passes[last])))
    await engine.close()
    return found


def line(model: str, concurrency: int, strategy: str, steps: Steps, plain: Steps) -> str:
    ratios = [one / other for (one, _), (other, _) in zip(steps, plain, strict=True)]
    step, inside = (1000 * statistics.median(times) for times in zip(*steps, strict=True))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} ... {max(ratios):.2f})"
    return f"| {model} | {concurrency} | {strategy} | {inside:.2f} | {step - inside:.2f} | {step:.2f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--at-once", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--models", nargs="+", choices=("embedded", "random"), default=("embedded", "random"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines: Sequence[str] = [
        "| model | at once | strategy | the pass, ms | all after it | the step | over plain |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        models = {"embedded": EMBEDDED / "model", "random": wide(Path(folder))}
        for name in chosen.models:
            for concurrency in chosen.at_once:
                found = asyncio.run(measure(models[name], concurrency, chosen.rounds, chosen.tokens))
                lines = [*lines, *(line(name, concurrency, one, found[one], found["plain"]) for one in STRATEGIES)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
