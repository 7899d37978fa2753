"""The cost of an attack for a server, and the table of all attacks."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from bench.harness.server_process import ServerProcess

HEALTH_LIMIT = 0.5  # seconds of the slowest /health
ONE_LIMIT, MANY_LIMIT = 300, 600  # megabytes at the peak, under one request and under several
NORMAL_LIMIT = 15.0  # seconds of a normal request
MEMORY_INTERVAL = 0.005  # seconds
SETTLE_SECONDS = 3.0  # for memory that the server frees


@dataclass
class Cost:
    """Cost of one attack: seconds of the slowest /health, and megabytes at the peak and afterwards."""

    health_delay: float = 0.0
    peak_megabytes: float = 0.0
    kept_megabytes: float = 0.0


@contextmanager
def measure_cost(server: ServerProcess) -> Iterator[Cost]:
    """Request /health in another process, and read the memory in a thread, while the context lasts.

    Args:
        server: The attacked server.

    Yields:
        The cost, which is complete after the context.
    """
    cost, before, is_over = Cost(), server.megabytes, threading.Event()

    def watch_memory() -> None:
        while not is_over.wait(MEMORY_INTERVAL):
            cost.peak_megabytes = max(cost.peak_megabytes, server.megabytes - before)

    watcher = threading.Thread(target=watch_memory)
    command = [sys.executable, "-m", "bench.hostile.health", str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as health_process:
        assert health_process.stdin is not None
        assert health_process.stdout is not None
        health_process.stdout.readline()
        watcher.start()
        try:
            yield cost
            time.sleep(0.1)
        finally:
            is_over.set()
            watcher.join()
            health_process.stdin.close()
            cost.health_delay = float(health_process.stdout.readline() or "nan")
    time.sleep(SETTLE_SECONDS)
    cost.kept_megabytes = server.megabytes - before


@dataclass
class Attack:
    """One row of the table.

    Attributes:
        name: Name of the attack.
        requests: Number of its requests or connections.
        outcome: Result in words, such as the statuses of the responses with their numbers.
        limits: The limits that hold, in words.
        passed: Whether all of them hold.
        cost: Cost, unless no server is measured.
    """

    name: str
    requests: int
    outcome: str
    limits: str
    passed: bool
    cost: Cost | None


@dataclass
class AttackTable:
    """The rows of all attacks, printed as they come.

    Attributes:
        names: Part of the names of the attacks to run.
        rows: The rows so far.
    """

    names: str = ""
    rows: list[Attack] = field(default_factory=list)

    def is_selected(self, name: str) -> bool:
        """Return whether an attack is to be run."""
        return self.names in name

    def add(
        self,
        name: str,
        requests: int,
        outcome: str,
        *,
        cost: Cost | None = None,
        limit: str = "",
        passed: bool = True,
    ) -> None:
        """Add and print a row.

        Args:
            name: Name of the attack.
            requests: Number of its requests or connections.
            outcome: Result in words, such as the statuses of the responses with their numbers.
            cost: Measured cost, or None if the attack has no server.
            limit: A limit in addition to those on the cost.
            passed: Whether that limit holds.
        """
        limits = [limit] if limit else []
        if cost is not None:
            megabytes = ONE_LIMIT if requests == 1 else MANY_LIMIT
            limits.insert(0, f"{HEALTH_LIMIT} s, {megabytes} MB")
            passed = passed and cost.health_delay <= HEALTH_LIMIT and cost.peak_megabytes <= megabytes
        if not self.rows:
            print(TABLE_HEADER)
        self.rows.append(Attack(name, requests, outcome, "; ".join(limits), passed, cost))
        print(format_row(self.rows[-1]), flush=True)

    def to_markdown(self) -> str:
        """Return the table."""
        return "\n".join([TABLE_HEADER, *map(format_row, self.rows)])

    def to_figures(self) -> list[dict[str, object]]:
        """Return the rows for a JSON file."""
        return [asdict(row) for row in self.rows]


TABLE_HEADER = (
    "| attack | requests | slowest /health, s | MB at the peak | MB kept | limit | result | outcome |\n"
    "|---|---|---|---|---|---|---|---|"
)


def format_row(row: Attack) -> str:
    figures = ["", "", ""]
    if row.cost is not None:
        cost = row.cost
        figures = [f"{cost.health_delay:.2f}", f"{cost.peak_megabytes:.0f}", f"{cost.kept_megabytes:.0f}"]
    cells = [row.name, str(row.requests), *figures, row.limits, "pass" if row.passed else "**fail**", row.outcome]
    return f"| {' | '.join(cells)} |"


def count_outcomes(outcomes: Iterable[str]) -> str:
    """Format equal outcomes with their number, the most frequent first."""
    return ", ".join(f"{outcome} ({number})" for outcome, number in Counter(outcomes).most_common())
