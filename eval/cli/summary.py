"""What several commands print and read: the summary of a run, warnings, and the option `--labels`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from eval.core.results import Results

INCOMPLETE = 3  # exit status if questions have no answer


def warn(text: str) -> None:
    """Print a warning."""
    typer.echo(f"warning: {text}", err=True)


def resolve_labels(labels: str | None) -> str | None:
    """Make a path absolute, because manifest.json stores it."""
    return labels if labels in {None, "repope"} else str(Path(str(labels)).expanduser().resolve())


def print_summary(results: Results, report: Path) -> None:
    """Print the tables of a run and the place of its report. A run with missing answers ends with `INCOMPLETE`."""
    from eval.report.terminal import print_results

    print_results(results, Console())
    for table in results.tables if results.task == "pope" else ():
        for row in table.rows:
            counts = ", ".join(
                f"{name} {value or 0:.0f}" for name, value in zip(table.headers, row.values, strict=True)
            )
            typer.echo(f"{table.title}, {row.strategy}: {counts}")
    typer.echo(f"Report: {report}")
    if not results.complete:
        raise typer.Exit(INCOMPLETE)
