"""report.md: the tables of the report for a terminal or a pull request."""

from __future__ import annotations

from eval.core.results import DetectionResult, ExtraTable, Results, ScopeResult, StrategyCost, StrategyResult
from eval.report.formatting import (
    BIAS_EXPLANATION,
    BIAS_HEADERS,
    DETECTION_EXPLANATION,
    DETECTION_HEADERS,
    NO_VALUE,
    SPLIT_EXPLANATION,
    SPLIT_HEADERS,
    describe_bias,
    describe_control_comparison,
    describe_detection,
    describe_size,
    format_interval,
    format_number,
    format_significance,
    format_table_value,
    list_bias_rows,
    list_detection_rows,
    list_split_rows,
)
from eval.report.statements import describe_strategies, explain_metrics, recommend_strategy
from eval.runs.manifest import Manifest

ESCAPED_PIPE = r"\|"

EXPLANATION = (
    "Each number has its 95 % interval, resampled by {cluster}. Below it is the paired difference to plain decoding "
    "with its interval and its p-value. The p-value is adjusted after Holm over the requested strategies; "
    "that of a comparison with another control is not. Detectable is the smallest true difference that a run of this "
    "size detects with a power of 80 %."
)


def render_markdown(results: Results, manifest: Manifest) -> str:
    """Render report.md."""
    decoding = "greedy" if results.greedy else f"temperature {manifest.plan.sampling.temperature:g}"
    seeds = "" if results.greedy else f", seeds {', '.join(map(str, results.seeds))}"
    lines = [f"# {results.title}: {results.model}", "", f"{decoding}{seeds}.", ""]
    if recommendation := recommend_strategy(results):
        lines += [f"**{recommendation}**", "", explain_metrics(results), ""]
        lines += [*(f"- `{strategy}`: {text}" for strategy, text in describe_strategies(results)), ""]
    lines += [EXPLANATION.format(cluster=results.cluster), ""]
    for scope in results.scopes:
        lines += [f"## {scope.scope}", "", f"{describe_size(scope, results)}.", ""]
        lines += _render_scope(scope, results)
        lines += [
            f"- `{comparison.strategy}` {describe_control_comparison(comparison, column)}"
            for comparison in scope.control_comparisons
            for column in results.columns
            if column.primary
        ]
        lines.append("")
    lines += _render_bias(results)
    lines += ["## Cost", "", *_render_costs(results.costs), ""]
    for table in results.tables:
        lines += [f"## {table.title}", "", *_render_extra_table(table), ""]
    if results.detection:
        lines += _render_detection(results.detection)
    if results.warnings:
        lines += ["## Warnings", "", *(f"- {warning}" for warning in results.warnings), ""]
    lines += ["## Provenance", "", *(f"- `{name}` sha256 {value}" for name, value in manifest.files.items())]
    lines += [f"- {name} sha256 {getattr(manifest, name)}" for name in ("images", "ids", "prompts", "answers")]
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    return "\n".join(lines) + "\n"


def _render_scope(scope: ScopeResult, results: Results) -> list[str]:
    header = ["strategy", *(column.title for column in results.columns)]
    has_signal = any(row.signal for row in scope.rows)
    header += ["d'", "criterion"] if has_signal else []
    rows = [_render_cells(f"`{row.strategy}`", row, results, has_signal) for row in scope.rows]
    rows += [_render_cells(row.strategy, row, results, has_signal) for row in scope.constant_rows]
    return [*render_table(header, rows), ""]


def _render_cells(name: str, row: StrategyResult, results: Results, has_signal: bool) -> list[str]:
    cells = [name]
    for column in results.columns:
        estimate, difference = row.metrics[column.name], row.against_plain.get(column.name)
        text = f"{format_number(estimate.value, column)} {format_interval(estimate, column)}"
        if difference is not None:
            value = format_number(difference.value, column, sign=True)
            change = f"{value} {format_interval(difference, column, sign=True)}"
            text += f"<br>{change.strip()}<br>{format_significance(difference, column)}".removesuffix("<br>")
        cells.append(text.strip())
    if has_signal:
        signal = row.signal
        cells += [f"{signal.sensitivity:.2f}", f"{signal.criterion:+.2f}"] if signal else [NO_VALUE, NO_VALUE]
    return cells


def _render_bias(results: Results) -> list[str]:
    measured = [(scope.scope, scope.bias) for scope in results.scopes if scope.bias]
    if results.missing_bias:
        return ["## Gains beyond bias", "", f"No control of yes bias: {results.missing_bias}", ""]
    if not measured:
        return []
    lines = ["## Gains beyond bias", "", BIAS_EXPLANATION, ""]
    if any(bias.splits for _, bias in measured):
        lines += [SPLIT_EXPLANATION, ""]
    for scope, bias in measured:
        lines += [f"### {scope}", "", f"{describe_bias(bias)}.", ""]
        for headers, rows in (
            (BIAS_HEADERS, list_bias_rows(bias, results)),
            (SPLIT_HEADERS, list_split_rows(bias, results)),
        ):
            if rows:
                named = [[f"`{row[0]}`" if row[0] else "", *row[1:]] for row in rows]
                lines += [*render_table([*headers], named), ""]
    return lines


def _render_extra_table(table: ExtraTable) -> list[str]:
    rows = [[f"`{row.strategy}`", *(format_table_value(value, table) for value in row.values)] for row in table.rows]
    return render_table(["strategy", *table.headers], rows)


def _render_detection(detection: list[DetectionResult]) -> list[str]:
    """Render all signals of all strategies in one table, and the calibration of each strategy."""
    rows = [[f"`{name}`" if name else "", *cells] for name, *cells in list_detection_rows(detection)]
    lines = ["## Detection of hallucinated mentions", "", DETECTION_EXPLANATION, ""]
    lines += [f"- `{result.strategy}`: {describe_detection(result)}." for result in detection]
    lines += ["", *render_table([*DETECTION_HEADERS], rows), ""]
    for result in detection:
        bins = [
            [f"{each.low:.1f} to {each.high:.1f}", str(each.mentions), f"{each.probability:.3f}", f"{each.real:.3f}"]
            for each in result.calibration
        ]
        lines += [f"### Calibration: {result.strategy}", ""]
        lines += [*render_table(["P(yes)", "mentions", "mean P(yes)", "in the image"], bins), ""]
    return lines


def _render_costs(costs: list[StrategyCost]) -> list[str]:
    rows = [
        [
            f"`{cost.strategy}`",
            _format_or_missing(cost.passes_per_token.value if cost.passes_per_token else None, "{:.2f}"),
            _format_or_missing(cost.first_token and cost.first_token * 1000, "{:.0f}"),
            _format_or_missing(cost.tokens_per_second.value, "{:.1f}"),
            _format_or_missing(cost.slowdown, "{:.2f}"),
        ]
        for cost in costs
    ]
    return render_table(["strategy", "passes/token", "first token, ms", "tokens/s", "time relative to plain"], rows)


def _format_or_missing(value: float | None, template: str) -> str:
    return NO_VALUE if value is None else template.format(value)


def render_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Render the lines of a table."""
    return [_render_row(header), _render_row(["---"] * len(header)), *map(_render_row, rows)]


def _render_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', ESCAPED_PIPE) for cell in cells)} |"
