"""The progress of a job on the terminal, and its summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eval.bulk.rows import BulkRow
from eval.bulk.store import RowTotals, add_rows

SUMMARY_NAME = "summary.json"


class JobSummary(BaseModel):
    """The content of summary.json.

    Attributes:
        complete: Whether the job has reached the end of its inputs.
        totals: Sums over all rows of the job.
        run: Sums over the rows that this run has added.
        skipped: Items of this run that had a row before, or occur twice in the inputs.
        seconds: Wall-clock time of this run.
        tokens_per_second: Generated tokens of this run per second.
        items_per_second: Rows of this run per second.
    """

    complete: bool
    totals: RowTotals
    run: RowTotals
    skipped: int
    seconds: float
    tokens_per_second: float
    items_per_second: float

    def write(self, folder: Path) -> None:
        """Write summary.json."""
        temporary = folder / f".{SUMMARY_NAME}.incomplete"
        temporary.write_text(self.model_dump_json(indent=2) + "\n")
        temporary.replace(folder / SUMMARY_NAME)

    def describe(self) -> str:
        """Describe the summary in one line."""
        totals = self.totals
        return (
            f"{totals.rows} rows, {totals.failures} with an error, {totals.struck} of {totals.claims} claims struck "
            f"out. This run: {self.run.rows} rows in {self.seconds:.1f} s, {self.tokens_per_second:.1f} tokens/s."
        )


class JobProgress:
    """A context manager that shows items, tokens/s, claims struck out, failures and the remaining time."""

    def __init__(self, console: Console, total: int | None) -> None:
        """Create a progress bar.

        Args:
            console: The terminal.
            total: Number of items, None if it is not known.
        """
        self.run = RowTotals()
        self.skipped = 0
        self._start = time.monotonic()
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} tokens/s"),
            TextColumn("{task.fields[struck]} claims struck out"),
            TextColumn("[red]{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
            speed_estimate_period=120,
            refresh_per_second=2,
        )
        self._bar = self._progress.add_task("items", total=total, rate=0.0, struck=0, failed=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def skip(self, count: int = 1) -> None:
        """Count items that need no row."""
        self.skipped += count
        self._progress.advance(self._bar, count)

    def add(self, rows: Sequence[BulkRow]) -> None:
        """Count rows that are stored."""
        self.run = add_rows(self.run, rows)
        self._progress.update(
            self._bar,
            advance=len(rows),
            rate=self.run.tokens / self.seconds,
            struck=self.run.struck,
            failed=self.run.failures,
        )

    @property
    def seconds(self) -> float:
        """Seconds since the start, at least a millisecond."""
        return max(time.monotonic() - self._start, 0.001)

    def summarize(self, totals: RowTotals, complete: bool) -> JobSummary:
        """Summarize the run."""
        return JobSummary(
            complete=complete,
            totals=totals,
            run=self.run,
            skipped=self.skipped,
            seconds=round(self.seconds, 3),
            tokens_per_second=round(self.run.tokens / self.seconds, 3),
            items_per_second=round(self.run.rows / self.seconds, 3),
        )
