"""How far it is: one bar for each strategy."""

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


class Bars:
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
        self._failed: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, label: str, total: int) -> None:
        self._bars[label] = self._progress.add_task(label, total=total, failed="", start=False)

    def start(self, label: str, done: int) -> None:
        """`done` came from the store."""
        self._progress.start_task(self._bars[label])
        self._progress.update(self._bars[label], completed=done)

    def advance(self, label: str) -> None:
        self._progress.advance(self._bars[label])

    def fail(self, label: str) -> None:
        self._failed[label] = self._failed.get(label, 0) + 1
        self._progress.update(self._bars[label], failed=f"{self._failed[label]} failed")
