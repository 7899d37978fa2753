"""The comparison as tables in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.report.wording import MINUS, NONE, number, outcome, size
from eval.results import Column, Cost, Difference, Estimate, Part, Results, Row

LEGEND = (
    "Beside a number its difference to plain: * p < 0.05, ** p < 0.01, *** p < 0.001, after Holm for what was asked "
    "for. Detectable: the least true difference that a run of this size finds with a power of 80 %."
)
COLOURS = {"better": "green", "worse": "red", "unclear": "default"}


def show(results: Results, console: Console) -> None:
    for part in results.parts:
        console.print(table(part, results))
        console.print(beside(part, results))
    console.print(LEGEND, style="dim", highlight=False)
    overall = results.parts[-1]
    for match in overall.matches:
        for column in results.columns:
            if column.primary:
                said = escape(f"{match.strategy} {outcome(match, column)}, {overall.scope}")
                console.print(said, highlight=False)
    console.print(cost_table(results.costs))
    for warning in results.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)


def table(part: Part, results: Results) -> Table:
    made = Table(title=f"{results.title}, {part.scope} ({size(part, results)})")
    made.add_column("strategy")
    for column in results.columns:
        made.add_column(column.title, justify="right")
    for row in part.rows:
        cells = [
            cell(row.metrics[column.name], row.against_plain.get(column.name), column) for column in results.columns
        ]
        made.add_row(escape(row.strategy), *cells)
    return made


def beside(part: Part, results: Results) -> Table:
    """What the first table has no room for."""
    has_signal = any(row.signal for row in part.rows)
    made = Table(title=f"Detectable, {part.scope}")
    made.add_column("strategy")
    for column in results.columns:
        made.add_column(column.title, justify="right")
    for name in ("d'", "criterion") if has_signal else ():
        made.add_column(name, justify="right")
    for row in part.rows:
        finds = [least(row.against_plain.get(column.name), column) for column in results.columns]
        made.add_row(escape(row.strategy), *finds, *(signal(row) if has_signal else ()))
    return made


def least(difference: Difference | None, column: Column) -> str:
    return "" if difference is None else number(difference.detectable, column)


def signal(row: Row) -> tuple[str, str]:
    if row.signal is None:
        return NONE, NONE
    return f"{row.signal.sensitivity:.2f}".replace("-", MINUS), f"{row.signal.criterion:+.2f}".replace("-", MINUS)


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
