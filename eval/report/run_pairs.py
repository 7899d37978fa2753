"""The comparison of two finished runs as tables in a terminal and as Markdown."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.analysis.paired_columns import PairResult, RunComparison, ScopePairs
from eval.core.results import MetricColumn
from eval.report.formatting import format_interval, format_number, format_p_value
from eval.report.markdown import render_table

HEADERS = ("strategy", "metric", "A", "B", "B minus A", "95 % interval", "significance")
EXPLANATION = (
    "Differences are paired on the shared questions. Intervals resample {cluster}s, or are Tango's if no question "
    "differs. p-values are those of the exact McNemar test for metrics of single questions under one seed, and "
    "otherwise of a permutation within {cluster}s, adjusted after Holm over the compared strategies."
)


def print_comparison(comparison: RunComparison, console: Console) -> None:
    """Print what the runs do not share, and a table for each scope."""
    for line in _describe_runs(comparison):
        console.print(escape(line), highlight=False)
    for scope in comparison.scopes:
        table = Table(title=f"{comparison.title}, {_describe_scope(scope, comparison)}", box=SIMPLE, pad_edge=False)
        for header in HEADERS:
            table.add_column(header, justify="left" if header in {"strategy", "metric"} else "right")
        for row in list_pair_rows(scope, comparison):
            table.add_row(*map(escape, row))
        console.print(table)
    console.print(EXPLANATION.format(cluster=comparison.cluster), style="dim", highlight=False)


def render_comparison(comparison: RunComparison) -> str:
    """Render compare.md."""
    lines = [f"# {comparison.title}: comparison of two runs", ""]
    lines += [f"- {line}" for line in _describe_runs(comparison)]
    lines += ["", EXPLANATION.format(cluster=comparison.cluster), ""]
    for scope in comparison.scopes:
        lines += [f"## {_describe_scope(scope, comparison)}", ""]
        lines += [*render_table(list(HEADERS), list_pair_rows(scope, comparison)), ""]
    return "\n".join(lines)


def list_pair_rows(scope: ScopePairs, comparison: RunComparison) -> list[list[str]]:
    """List the cells of the table of a scope, in the order of `HEADERS`."""
    rows: list[list[str]] = []
    for pair in scope.pairs:
        name = _describe_pair(pair)
        for column in comparison.columns:
            rows.append([name, *_list_cells(pair, column)])
            name = ""
        rows.append(["", f"{pair.different_answers} of {scope.answers} answers differ", *[""] * 5])
    return rows


def _list_cells(pair: PairResult, column: MetricColumn) -> tuple[str, ...]:
    difference = pair.differences[column.name]
    counts = "" if difference.gained is None else f", {difference.gained} gained, {difference.lost} lost"
    if difference.is_without_discordance:
        counts = ""
    return (
        column.title,
        format_number(pair.first_metrics[column.name].value, column),
        format_number(pair.second_metrics[column.name].value, column),
        format_number(difference.value, column, sign=True),
        format_interval(difference, column, sign=True),
        f"{format_p_value(difference)}{counts}".removeprefix(", "),
    )


def _describe_pair(pair: PairResult) -> str:
    first, second = pair.first.removeprefix("A: "), pair.second.removeprefix("B: ")
    return first if first == second else f"{first} → {second}"


def _describe_scope(scope: ScopePairs, comparison: RunComparison) -> str:
    if comparison.seeds > 1:
        return f"{scope.scope} ({scope.answers} answers under {comparison.seeds} seeds on {scope.images} images)"
    return f"{scope.scope} ({scope.answers} questions on {scope.images} images)"


def _describe_runs(comparison: RunComparison) -> list[str]:
    return [
        f"A: {comparison.first}",
        f"B: {comparison.second}",
        *(f"differs: {line}" for line in comparison.unequal),
        *(f"not shared: {line}" for line in comparison.not_shared),
    ]
