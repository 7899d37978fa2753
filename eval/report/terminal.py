"""The comparison as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.core.results import (
    DetectionResult,
    Difference,
    Estimate,
    MetricColumn,
    Results,
    ScopeResult,
    StrategyCost,
    StrategyResult,
)
from eval.report.formatting import (
    BIAS_EXPLANATION,
    BIAS_HEADERS,
    DETECTION_HEADERS,
    MINUS,
    NO_VALUE,
    SPLIT_EXPLANATION,
    SPLIT_HEADERS,
    describe_bias,
    describe_control_comparison,
    describe_detection,
    describe_size,
    format_number,
    list_bias_rows,
    list_detection_rows,
    list_split_rows,
)
from eval.report.statements import describe_strategies, explain_metrics, recommend_strategy

LEGEND = (
    "The second number is the difference to plain: * p < 0.05, ** p < 0.01, *** p < 0.001, adjusted after Holm over "
    "the requested strategies; comparisons with other controls are not adjusted. Detectable: the smallest true "
    "difference that a run of this size detects with a power of 80 %."
)
COLOURS = {"better": "green", "worse": "red", "unclear": "default"}


def print_results(results: Results, console: Console) -> None:
    """Print a recommendation, a sentence for each strategy, all tables, the comparisons with controls, and warnings."""
    if recommendation := recommend_strategy(results):
        console.print(f"[bold]{escape(recommendation)}[/bold]", highlight=False)
        console.print(escape(explain_metrics(results)), style="dim", highlight=False)
    for strategy, text in describe_strategies(results):
        console.print(f"[bold]{escape(strategy)}[/bold]: {escape(text)}", highlight=False)
    for scope in results.scopes:
        console.print(_build_metric_table(scope, results))
        if any(row.against_plain or row.signal for row in scope.rows):
            console.print(_build_detectable_table(scope, results))
    if any(row.against_plain for scope in results.scopes for row in scope.rows):
        console.print(LEGEND, style="dim", highlight=False)
    overall = results.scopes[-1]
    for comparison in overall.control_comparisons:
        for column in results.columns:
            if column.primary:
                text = f"{comparison.strategy} {describe_control_comparison(comparison, column)}, {overall.scope}"
                console.print(escape(text), highlight=False)
    _print_bias(overall, results, console)
    console.print(_build_cost_table(results.costs))
    if results.detection:
        console.print(_build_detection_table(results.detection))
    for result in results.detection:
        console.print(f"{escape(result.strategy)}: {describe_detection(result)}.", highlight=False)
    for warning in results.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)


def _print_bias(scope: ScopeResult, results: Results, console: Console) -> None:
    """Print the yes-bias control of one scope, or the reason why there is none."""
    if results.missing_bias:
        console.print(f"No control of yes bias: {escape(results.missing_bias)}", highlight=False)
    if scope.bias is None:
        return
    console.print(f"{describe_bias(scope.bias)}.", highlight=False)
    for title, headers, rows, explanation in (
        ("Gains beyond bias", BIAS_HEADERS, list_bias_rows(scope.bias, results, intervals=False), BIAS_EXPLANATION),
        ("Parts of the gain", SPLIT_HEADERS, list_split_rows(scope.bias, results, intervals=False), SPLIT_EXPLANATION),
    ):
        if rows:
            print_plain_table(f"{title}, {scope.scope}", headers, rows, console)
            console.print(explanation, style="dim", highlight=False)


def print_plain_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table without lines. Numbers are aligned to the right."""
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers:
        table.add_column(header, justify="left" if header in {"strategy", "metric", "scope", "row"} else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _build_metric_table(scope: ScopeResult, results: Results) -> Table:
    table = Table(title=f"{results.title}, {scope.scope} ({describe_size(scope, results)})")
    table.add_column("strategy")
    for column in results.columns:
        table.add_column(column.title, justify="right")
    for row in scope.rows:
        cells = [
            format_cell(row.metrics[column.name], row.against_plain.get(column.name), column)
            for column in results.columns
        ]
        table.add_row(escape(row.strategy), *cells)
    for row in scope.constant_rows:
        cells = [format_number(row.metrics[column.name].value, column) for column in results.columns]
        table.add_row(row.strategy, *cells, style="dim")
    return table


def _build_detectable_table(scope: ScopeResult, results: Results) -> Table:
    """Build a second table, so that the first fits into 100 columns."""
    has_signal = any(row.signal for row in scope.rows)
    table = Table(title=f"Detectable, {scope.scope}")
    table.add_column("strategy")
    for column in results.columns:
        table.add_column(column.title, justify="right")
    for name in ("d'", "criterion") if has_signal else ():
        table.add_column(name, justify="right")
    for row in scope.rows:
        cells = [_format_detectable(row.against_plain.get(column.name), column) for column in results.columns]
        table.add_row(escape(row.strategy), *cells, *(_format_signal(row) if has_signal else ()))
    return table


def _format_detectable(difference: Difference | None, column: MetricColumn) -> str:
    return "" if difference is None else format_number(difference.detectable, column)


def _format_signal(row: StrategyResult) -> tuple[str, str]:
    if row.signal is None:
        return NO_VALUE, NO_VALUE
    return f"{row.signal.sensitivity:.2f}".replace("-", MINUS), f"{row.signal.criterion:+.2f}".replace("-", MINUS)


def format_cell(estimate: Estimate, difference: Difference | None, column: MetricColumn) -> str:
    """Format a value with its difference to plain, with stars for significance and rich's colour tags."""
    text = format_number(estimate.value, column)
    if difference is None or difference.value is None:
        return text
    p = difference.effective_p
    stars = "" if p is None else "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""
    change = format_number(difference.value, column, sign=True)
    return f"{text} [{COLOURS[difference.verdict]}]{change}{stars}[/]"


def _build_detection_table(detection: list[DetectionResult]) -> Table:
    table = Table(title="Detection of hallucinated mentions")
    for name in DETECTION_HEADERS:
        table.add_column(name, justify="left" if name in {"strategy", "signal"} else "right")
    for row in list_detection_rows(detection):
        table.add_row(*map(escape, row))
    return table


def _build_cost_table(costs: list[StrategyCost]) -> Table:
    table = Table(title="Cost")
    for name in ("strategy", "passes/token", "first token", "tokens/s", "x plain's time"):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for cost in costs:
        passes = cost.passes_per_token and cost.passes_per_token.value
        table.add_row(
            escape(cost.strategy),
            NO_VALUE if passes is None else f"{passes:.2f}",
            NO_VALUE if cost.first_token is None else f"{cost.first_token * 1000:.0f} ms",
            NO_VALUE if cost.tokens_per_second.value is None else f"{cost.tokens_per_second.value:.1f}",
            NO_VALUE if cost.slowdown is None else f"{cost.slowdown:.2f}",
        )
    return table
