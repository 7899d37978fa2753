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


def recommend_strategy(results: Results) -> str:
    """Recommend a strategy, or plain decoding.

    A gain counts if it is significant and a matched control or a threshold on p(yes) does not give it as well.

    Args:
        results: The results of a run.

    Returns:
        Some sentences, empty without a strategy beside plain decoding.
    """
    scope = results.scopes[-1] if results.scopes else None
    rows = _list_requested(scope, results) if scope else []
    if scope is None or not rows:
        return ""
    better = [row for row in rows if _list_changes(row, results, "better", primary=True)]
    if not better:
        return _recommend_plain(rows, results)
    earned = [row for row in better if _list_earned(row, scope, results)]
    if not earned:
        return " ".join(_recommend_control(row, scope, results) for row in better)
    earned.sort(key=lambda row: _rank_gain(row, scope, results))
    clean = [row for row in earned if not _list_changes(row, results, "worse")]
    if clean:
        return _recommend_clean(clean, scope, results)
    return " ".join(_recommend_trade(row, scope, results) for row in earned)


def explain_metrics(results: Results) -> str:
    """Explain the primary metrics, and those that a strategy is worse in.

    Args:
        results: The results of a run.

    Returns:
        One sentence for each metric, empty if there is nothing to explain.
    """
    rows = _list_requested(results.scopes[-1], results) if results.scopes else []
    worse = {column.name for row in rows for column in _list_changes(row, results, "worse")}
    return " ".join(
        f"{column.title} is the {column.meaning}{'' if column.better == 'neither' else f', {column.better} is better'}."
        for column in results.columns
        if rows and column.meaning and (column.primary or column.name in worse)
    )


def _recommend_plain(rows: list[StrategyResult], results: Results) -> str:
    primary = [column for column in results.columns if column.primary]
    sentence = f"Use plain decoding: no strategy is significantly better in {_join_titles(primary, 'or')}."
    found = [row.against_plain[primary[0].name].detectable for row in rows] if primary else []
    if detectable := max((each for each in found if each is not None), default=None):
        size = f"{format_number(detectable, primary[0])}{' points' if primary[0].percent else ''}"
        sentence += f" A run of this size detects differences in {primary[0].title} from about {size} on."
    return sentence


def _recommend_control(row: StrategyResult, scope: ScopeResult, results: Results) -> str:
    """Describe a gain that a control gives as well."""
    gains = _list_changes(row, results, "better", primary=True)
    controls = dict.fromkeys(each for column in gains for each in _list_rivals(row.strategy, column, scope))
    return (
        f"{row.strategy} is not needed: it is better than plain decoding in {_join_titles(gains, 'and')}, but not "
        f"significantly better than {' and '.join(controls)}."
    )


def _recommend_clean(rows: list[StrategyResult], scope: ScopeResult, results: Results) -> str:
    best, *others = rows
    gains = _join_titles(_list_earned(best, scope, results), "and")
    cost = " and ".join(_describe_cost(best.strategy, results))
    sentence = f"Use {best.strategy}: it is better than plain decoding in {gains}, and significantly worse in no metric"
    sentence += f", at {cost}." if cost else "."
    sentence += "".join(f" {warning}." for warning in best.warnings)
    if others:
        names = ", ".join(
            f"{row.strategy} ({parts[0]})" if (parts := _describe_cost(row.strategy, results)) else row.strategy
            for row in others
        )
        sentence += f" Other gains at no price: {names}. The strategies are not tested against each other."
    return sentence


def _recommend_trade(row: StrategyResult, scope: ScopeResult, results: Results) -> str:
    gains = _join_titles(_list_earned(row, scope, results), "and")
    prices = _join_titles(_list_changes(row, results, "worse"), "and")
    return (
        f"Use {row.strategy} only if a worse {prices} is acceptable, and plain decoding otherwise: it is better in "
        f"{gains}."
    )


def _join_titles(columns: list[MetricColumn], word: str) -> str:
    return f" {word} ".join(column.title for column in columns)


def _list_earned(row: StrategyResult, scope: ScopeResult, results: Results) -> list[MetricColumn]:
    """List the primary metrics with a gain that no control gives as well."""
    gains = _list_changes(row, results, "better", primary=True)
    return [column for column in gains if not _list_rivals(row.strategy, column, scope)]


def _list_rivals(strategy: str, column: MetricColumn, scope: ScopeResult) -> list[str]:
    """List the controls that a strategy is not significantly better than in a metric."""
    rivals = [
        comparison.control
        for comparison in scope.control_comparisons
        if comparison.strategy == strategy and comparison.differences[column.name].verdict != "better"
    ]
    bias = scope.bias
    splits = [each for each in bias.splits if each.strategy == strategy and column.name in each.metrics] if bias else []
    if splits:
        rest = splits[0].metrics[column.name].rest
        bound = rest.high if column.better == "lower" else rest.low
        is_better = bound is not None and (bound < 0 if column.better == "lower" else bound > 0)
        return rivals if is_better else [*rivals, "a cut and a constant added to yes"]
    controls = [each for each in bias.controls if each.strategy == strategy] if bias else []
    metric = controls[0].metrics.get(column.name) if controls else None
    if metric is not None and metric.beyond.verdict != "better":
        rivals.append("another threshold on p(yes) of plain decoding")
    return rivals


def _rank_gain(row: StrategyResult, scope: ScopeResult, results: Results) -> tuple[int, float]:
    """Return a sort key: the position of the first earned metric, then the gain in it, the largest gain first."""
    column = _list_earned(row, scope, results)[0]
    change = row.against_plain[column.name].value or 0.0
    return results.columns.index(column), change if column.better == "lower" else -change


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
        is_gain = metric.bias * metric.gain > 0
        part = format_number(metric.bias, column, sign=True) if is_gain else "none"
        whole = f"{format_number(metric.gain, column, sign=True)} points of {column.title}"
        parts.append(f"another threshold on p(yes) of plain decoding gives {part} of the {whole}")
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
