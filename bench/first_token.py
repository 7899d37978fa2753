"""Time to an answer of one token, on a load like POPE's: six questions about each picture.

    python -m bench.first_token --write

Each strategy is asked about each picture in turn, in an engine that keeps what it has read of a picture (its first
question: cold; the other five: warm) and in one that keeps nothing. Beside it the serial way: one pass over the whole
prompt for each branch, without what the strategy asks first. Then all questions at once, where AGLA's matcher still
knows them. Every round has pictures of its own, and takes the strategies in another order. Ratios are taken within a
round, over plain decoding in the engine that keeps nothing; the median of the rounds, with the least and greatest.
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

from bench import serial
from bench.models import EMBEDDED, wide
from bench.page import write
from bench.per_token import PARAMETERS, STRATEGIES, TWO_BRANCHES, machine
from decoding.ask import Ask, Picture, Prompt, Sampling
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.registry import build
from decoding.stack import Run, collect

THINGS = ("person", "dog", "car", "chair", "cup", "bird")
PICTURES = 2  # of a round
SERIAL = {"plain": 1, TWO_BRANCHES[0]: 2}  # passes of the serial way
SIDES = ("keeps nothing", "cold", "warm", "all at once, keeps nothing", "all at once")


@dataclass(frozen=True)
class Row:
    model: str
    strategy: str
    side: str
    milliseconds: float  # per question, median
    over_plain: float  # median of the rounds' ratios
    spread: tuple[float, float]


async def ask(engine: HFEngine, strategy: str, question: Prompt) -> float:
    """Seconds."""
    began = time.perf_counter()
    async with Run(build(strategy, PARAMETERS.get(strategy, {})), engine) as run:
        await collect(run.stream(await run.resolve(Ask(question, Sampling(max_tokens=1, ignore_eos=True)))))
    return time.perf_counter() - began


def questions(picture: Picture) -> list[Prompt]:
    return [Prompt.of(f"Is there a {thing} in the image?", picture) for thing in THINGS]


async def one_round(keeping: HFEngine, forgetting: HFEngine, strategy: str, shots: Sequence[Picture]) -> list[float]:
    """Seconds per question, of each of the sides."""
    everything = [question for shot in shots for question in questions(shot)]
    anew, cold, warm = [], [], []
    keeping.worker.prefixes.clear()
    for shot in shots:
        first, *others = questions(shot)
        anew += [await ask(forgetting, strategy, question) for question in (first, *others)]
        cold.append(await ask(keeping, strategy, first))
        warm += [await ask(keeping, strategy, question) for question in others]
    keeping.worker.prefixes.clear()
    together = []
    for engine in (forgetting, keeping):
        began = time.perf_counter()
        await asyncio.gather(*(ask(engine, strategy, question) for question in everything))
        together.append((time.perf_counter() - began) / len(everything))
    return [*map(statistics.median, (anew, cold, warm)), *together]


def serially(engine: HFEngine, shots: Sequence[Picture], branches: int) -> float:
    """Seconds per question."""
    encoded = [engine.model.encoder.encode(question) for shot in shots for question in questions(shot)]
    return statistics.median(serial.first_token(engine.model, [one] * branches) for one in encoded)


async def measure(name: str, folder: Path, rounds: int) -> list[Row]:
    matcher = str(EMBEDDED / "matcher")
    keeping = HFEngine(HFSettings(str(folder), matcher=matcher, device="cpu"))
    forgetting = HFEngine(HFSettings(str(folder), matcher=matcher, device="cpu", prefix_cache_bytes=0))
    for engine in (keeping, forgetting):
        await engine.start()
    files = iter(sorted((EMBEDDED / "scenes" / "images").glob("*.png")))

    def pictures(count: int) -> list[Picture]:
        return [Picture(Image.open(file).convert("RGB")) for file in islice(files, count)]

    times: dict[tuple[str, str], list[float]] = {}
    for strategy in STRATEGIES:
        await one_round(keeping, forgetting, strategy, pictures(1))
    chance = random.Random(0)
    turns = [(pictures(PICTURES), chance.sample(STRATEGIES, len(STRATEGIES))) for _ in range(rounds)]
    for shots, strategy in track([(shots, strategy) for shots, order in turns for strategy in order], name):
        for side, each in zip(SIDES, await one_round(keeping, forgetting, strategy, shots), strict=True):
            times.setdefault((strategy, side), []).append(each)
        if strategy in SERIAL:
            times.setdefault((strategy, "serial way"), []).append(serially(forgetting, shots, SERIAL[strategy]))
    for engine in (keeping, forgetting):
        await engine.close()
    plain = times["plain", SIDES[0]]
    rows = []
    for (strategy, side), seconds in sorted(times.items(), key=lambda item: STRATEGIES.index(item[0][0])):
        ratios = [one / other for one, other in zip(seconds, plain, strict=True)]
        spread = round(min(ratios), 3), round(max(ratios), 3)
        milliseconds = round(1000 * statistics.median(seconds), 3)
        rows.append(Row(name, strategy, side, milliseconds, round(statistics.median(ratios), 3), spread))
    return rows


def table(rows: Sequence[Row]) -> str:
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
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, and JSON beside it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {"embedded": EMBEDDED / "model", "random (7 layers, 1024 wide)": wide(Path(folder))}
        rows = [
            row
            for name, path in models.items()
            if name.split()[0] in chosen.models
            for row in asyncio.run(measure(name, path, chosen.rounds))
        ]
    print(table(rows))
    if chosen.write:
        write("first_token", table(rows), {**machine(), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
