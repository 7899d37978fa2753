"""The comparison as tables in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.report.wording import NONE, number
from eval.results import Column, Cost, Difference, Estimate, Part, Results

COLOURS = {"better": "green", "worse": "red", "unclear": "default"}


def show(results: Results, console: Console) -> None:
    for part in results.parts:
        console.print(table(part, results))
    console.print(cost_table(results.costs))
    for warning in results.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)


def table(part: Part, results: Results) -> Table:
    made = Table(title=f"{results.title}, {part.scope} (n={part.questions}, {part.pictures} pictures)")
    made.add_column("strategy")
    for column in results.columns:
        made.add_column(column.title, justify="right")
    for row in part.rows:
        cells = [
            cell(row.metrics[column.name], row.against_plain.get(column.name), column) for column in results.columns
        ]
        made.add_row(escape(row.strategy), *cells)
    return made


def cell(estimate: Estimate, difference: Difference | None, column: Column) -> str:
    text = number(estimate.value, column)
    if difference is None or difference.value is None:
        return text
    p = difference.chance
    stars = "" if p is None else "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""
    return f"{text} [{COLOURS[difference.verdict]}]{number(difference.value, column, sign=True)}{stars}[/]"


def cost_table(costs: list[Cost]) -> Table:
    made = Table(title="Cost")
    for name in ("strategy", "passes/token", "first token", "tokens/s", "x plain's time"):
        made.add_column(name, justify="left" if name == "strategy" else "right")
    for each in costs:
        passes = each.passes_per_token and each.passes_per_token.value
        made.add_row(
            escape(each.strategy),
            NONE if passes is None else f"{passes:.2f}",
            NONE if each.first_token is None else f"{each.first_token * 1000:.0f} ms",
            NONE if each.tokens_per_second.value is None else f"{each.tokens_per_second.value:.1f}",
            NONE if each.slowdown is None else f"{each.slowdown:.2f}",
        )
    return made
