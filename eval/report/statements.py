"""One sentence for each strategy: what the run shows about it. All reports begin with these sentences."""

from __future__ import annotations

from typing import NamedTuple

from eval.core.results import Difference, MetricColumn, Results, ScopeResult, StrategyResult
from eval.report.formatting import format_interval, format_number, format_p_value


class Statement(NamedTuple):
    """A strategy, and the sentence about it."""

    strategy: str
    text: str


def describe_strategies(results: Results) -> list[Statement]:
    """Describe every requested strategy beside plain decoding, over all scopes together or in the last one."""
    if not results.scopes:
        return []
    scope = results.scopes[-1]
    return [Statement(row.strategy, _describe_strategy(row, scope, results)) for row in _list_requested(scope, results)]


def describe_outcome(results: Results) -> str:
    """Name the strategies that are better than plain decoding in a primary metric, and worse in no metric.

    Args:
        results: The results of a run.

    Returns:
        A sentence, empty without a strategy beside plain decoding.
    """
    rows = _list_requested(results.scopes[-1], results) if results.scopes else []
    if not rows:
        return ""
    primary = " or ".join(column.title for column in results.columns if column.primary)
    better = [row for row in rows if _list_changes(row, results, "better", primary=True)]
    clean = [row.strategy for row in better if not _list_changes(row, results, "worse")]
    if clean:
        return f"Better than plain decoding in {primary}, and worse in no metric: {', '.join(clean)}."
    if better:
        names = ", ".join(row.strategy for row in better)
        return f"Better than plain decoding in {primary}, but worse in another metric: {names}."
    return f"No strategy is significantly better than plain decoding in {primary}."


def _list_requested(scope: ScopeResult, results: Results) -> list[StrategyResult]:
    controls = {arm.label for arm in results.arms if not arm.requested}
    return [row for row in scope.rows if row.against_plain and row.strategy not in controls]


def _list_changes(
    row: StrategyResult, results: Results, verdict: str, *, primary: bool | None = None
) -> list[MetricColumn]:
    return [
        column
        for column in results.columns
        if row.against_plain[column.name].verdict == verdict and primary in {None, column.primary}
    ]


def _describe_strategy(row: StrategyResult, scope: ScopeResult, results: Results) -> str:
    parts = [_describe_change(row, column) for column in results.columns if column.primary]
    parts += [_describe_change(row, column) for column in _list_changes(row, results, "worse", primary=False)]
    for column in _list_changes(row, results, "better", primary=True):
        parts += _describe_controls(row.strategy, column, scope)
    return "; ".join([*parts, *_describe_cost(row.strategy, results)]) + "."


def _describe_change(row: StrategyResult, column: MetricColumn) -> str:
    difference, value = row.against_plain[column.name], row.metrics[column.name].value
    if difference.value is None:
        return f"{column.title} has no difference with a value"
    if difference.is_without_discordance:
        return f"{column.title}: no question differs"
    if difference.verdict == "unclear":
        change = f"{format_number(difference.value, column, sign=True)}, {format_p_value(difference)}"
        return f"{column.title} does not differ significantly ({change.removesuffix(', ')})"
    direction = "higher" if difference.value > 0 else "lower"
    amount = _format_amount(difference, value, column)
    return f"{column.title} is {difference.verdict}: {direction} by {amount} ({format_p_value(difference)})"


def _format_amount(difference: Difference, value: float | None, column: MetricColumn) -> str:
    """Format the size of a difference: in percent of plain decoding for errors, in points for other shares."""
    change = difference.value or 0.0
    reference = (value or 0.0) - change
    if column.better == "lower" and reference > 0:
        return f"{abs(change) / reference:.0%}".replace("%", " %")
    return f"{format_number(abs(change), column)}{' points' if column.percent else ''}"


def _describe_controls(strategy: str, column: MetricColumn, scope: ScopeResult) -> list[str]:
    """Describe how much of a gain matched controls and a threshold on p(yes) give as well."""
    parts = [
        f"not significantly better than its control {comparison.control} in {column.title}"
        for comparison in scope.control_comparisons
        if comparison.strategy == strategy and comparison.differences[column.name].verdict != "better"
    ]
    if split := _describe_split(strategy, column, scope):
        return [*parts, split]  # The threshold is a part of it, while plain decoding at a threshold is greedy.
    for control in scope.bias.controls if scope.bias else []:
        metric = control.metrics.get(column.name)
        if control.strategy != strategy or metric is None or metric.bias is None or metric.gain is None:
            continue
        part = f"{format_number(metric.bias, column)} of {format_number(metric.gain, column)} points"
        parts.append(f"another threshold on p(yes) of plain decoding gives {part} of {column.title}")
        break  # The first one has a threshold for each scope, which favours the control.
    return parts


def _describe_split(strategy: str, column: MetricColumn, scope: ScopeResult) -> str:
    """Describe the parts of a gain over sampled plain decoding, or return an empty string if it is not split."""
    for split in scope.bias.splits if scope.bias else []:
        metric = split.metrics.get(column.name)
        if split.strategy != strategy or metric is None:
            continue
        named = [("cut", metric.cut), ("bias", metric.bias), ("rest", metric.rest)]
        parts = [
            f"{format_number(part.value, column, sign=True)} {name} {format_interval(part, column, sign=True)}".rstrip()
            for name, part in named
            if part is not None
        ]
        gain = format_number(metric.gain.value, column, sign=True)
        return f"of the {gain} points of {column.title} are {', '.join(parts)}"
    return ""


def _describe_cost(strategy: str, results: Results) -> list[str]:
    cost = next((each for each in results.costs if each.strategy == strategy), None)
    if cost is None:
        return []
    parts = []
    if cost.passes_per_token and cost.passes_per_token.value is not None:
        parts.append(f"{cost.passes_per_token.value:.1f} passes per token")
    if cost.slowdown is not None:
        parts.append(f"{cost.slowdown:.1f} times the time of plain decoding")
    return parts
