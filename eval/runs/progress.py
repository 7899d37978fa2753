"""Progress bars of a run, one for each arm."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBars:
    """A context manager that shows answered, failed and total requests of each arm."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[red]{task.fields[failed]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
            speed_estimate_period=60,
            refresh_per_second=4,
        )
        self._bars: dict[str, TaskID] = {}
        self._failures: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, label: str, total: int) -> None:
        """Add the bar of an arm."""
        self._bars[label] = self._progress.add_task(label, total=total, failed="", start=False)

    def start(self, label: str, stored: int) -> None:
        """Start the clock of an arm, `stored` of whose answers were in the store."""
        self._progress.start_task(self._bars[label])
        self._progress.update(self._bars[label], completed=stored)

    def advance(self, label: str) -> None:
        """Count one answer."""
        self._progress.advance(self._bars[label])

    def add_failure(self, label: str) -> None:
        """Count one failed request."""
        self._failures[label] = self._failures.get(label, 0) + 1
        self._progress.update(self._bars[label], failed=f"{self._failures[label]} failed")
