"""What several commands print and read: the summary of a run, warnings, and options of labels and judges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from eval.benchmarks.llm_judge import Judge
    from eval.core.results import Results
    from eval.core.task import JudgeSettings

INCOMPLETE = 3  # exit status if questions have no answer


def warn(text: str) -> None:
    """Print a warning."""
    typer.echo(f"warning: {text}", err=True)


def resolve_labels(labels: str | None) -> str | None:
    """Make a path absolute, because manifest.json stores it."""
    return labels if labels in {None, "repope"} else str(Path(str(labels)).expanduser().resolve())


def build_judge_settings(judge: Judge | None, prompt: Path | None) -> JudgeSettings | None:
    """Build the settings of a judge, with the prompt of a file, or with the prompt for MMHal-Bench."""
    if judge is None:
        return None
    from eval.benchmarks.llm_judge import MMHAL
    from eval.core.jsonl import read_lines
    from eval.core.task import JudgeSettings

    return JudgeSettings(model=judge.model, prompt="\n".join(read_lines(prompt)) if prompt else MMHAL)


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
