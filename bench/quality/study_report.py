"""Tables and figure of docs/results.md, from the runs of `bench.study`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.harness.docs_page import DOCS, RESULTS, fill_section
from bench.quality import study_figure
from eval.core.results import (
    ControlComparison,
    Difference,
    Estimate,
    MetricColumn,
    Results,
    ScopeResult,
    StrategyCost,
    StrategyResult,
)
from eval.report.formatting import NO_VALUE, describe_control_comparison, format_interval, format_number, format_p_value
from eval.runs.manifest import Manifest, read_manifest

PAGE = DOCS / "results.md"
FIGURES_FILE = RESULTS / "results.json"
TESTED_METRICS = ("accuracy", "chair_s", "chair_i")  # shown with interval and p-value of the difference


def write_report(runs: Path, tuned: Mapping[str, str], state: Mapping[str, str]) -> None:
    """Write the sections of all stored runs; sections without a run stay as they are.

    Args:
        runs: Folder of the runs.
        tuned: Tuned label of each strategy.
        state: Weights, commit and versions.

    Raises:
        SystemExit: Some answers come from other weights.
    """
    runs_by_name = {
        folder.name: read_run(folder) for folder in sorted(runs.iterdir()) if (folder / "results.json").is_file()
    }
    if other_weights := {manifest.plan.weights for _, manifest in runs_by_name.values()} - {state["weights"]}:
        raise SystemExit(f"Some answers come from other weights than the server's: {other_weights}")
    answered_by = ", ".join(f"{key} {value}" for key, value in state.items())
    sections = {
        name: "\n".join([*build_section(results, manifest, tuned), f"- {answered_by}."])
        for name, (results, manifest) in runs_by_name.items()
        if not name.endswith("tuning")
    }
    for name, text in sections.items():
        fill_section(PAGE, name, text)
    if {"pope-greedy", "chair-greedy"} <= runs_by_name.keys():
        svg = study_figure.draw_figure(runs_by_name["pope-greedy"][0], runs_by_name["chair-greedy"][0])
        (DOCS / "results.svg").write_text(svg)
    figures = json.loads(FIGURES_FILE.read_text())
    figures["tuned"] |= tuned
    figures["runs"] |= {name: {"state": state, **summarize_run(results)} for name, (results, _) in runs_by_name.items()}
    FIGURES_FILE.write_text(json.dumps(figures, separators=(",", ":")) + "\n")


def summarize_run(results: Results) -> dict[str, Any]:
    """Summarize a run to five digits: [value, low, high], and for a difference [..., p, p after Holm, detectable]."""
    overall, names = results.scopes[-1], [column.name for column in results.columns]
    return {
        "greedy": results.greedy,
        "seeds": results.seeds,
        "questions": overall.questions,
        "images": overall.images,
        "strategies": {
            row.strategy: {
                "parameters": arm.parameters,
                "passes_per_token": with_bounds(cost.passes_per_token),
                **{name: with_bounds(row.metrics[name]) for name in names},
                "against_plain": {name: with_test(difference) for name, difference in row.against_plain.items()},
                "splits": {
                    scope.scope: {name: with_bounds(scope.rows[index].metrics[name]) for name in names}
                    for scope in results.scopes[:-1]
                },
            }
            for index, (row, arm, cost) in enumerate(zip(overall.rows, results.arms, results.costs, strict=True))
        },
        "against_controls": [
            {
                "strategy": comparison.strategy,
                "control": comparison.control,
                **{name: with_test(difference) for name, difference in comparison.differences.items()},
            }
            for comparison in select_informative_comparisons(results)
        ],
    }


def select_informative_comparisons(results: Results) -> list[ControlComparison]:
    """Return the matched controls other than plain decoding, which the table shows already."""
    return [comparison for comparison in results.scopes[-1].control_comparisons if comparison.control != "plain"]


def with_bounds(estimate: Estimate | Difference | None) -> list[float | None]:
    """Return [value, low, high], rounded."""
    return [] if estimate is None else [round_digits(value) for value in (estimate.value, estimate.low, estimate.high)]


def with_test(difference: Difference) -> list[float | None]:
    """Return [value, low, high, p, p after Holm, detectable], rounded."""
    rest = (difference.p, difference.p_holm, difference.detectable)
    return [*with_bounds(difference), *(round_digits(value) for value in rest)]


def round_digits(value: float | None) -> float | None:
    """Round to five significant digits."""
    return None if value is None else float(f"{value:.5g}")


def read_run(folder: Path) -> tuple[Results, Manifest]:
    """Read the results and the manifest of a run."""
    return Results.model_validate_json((folder / "results.json").read_bytes()), read_manifest(folder)


def build_section(results: Results, manifest: Manifest, tuned: Mapping[str, str]) -> Iterable[str]:
    """Write the section of one run.

    Yields:
        Lines of Markdown.
    """
    overall = results.scopes[-1]
    decoding = "greedy" if results.greedy else f"temperature 1, seeds {', '.join(map(str, results.seeds))}"
    yield f"{overall.questions // len(results.seeds)} questions on {overall.images} images, {decoding}."
    yield ""
    yield from build_table(results, overall, set(tuned.values()) - tuned.keys())
    yield ""
    comparisons = select_informative_comparisons(results)
    if comparisons:
        yield from build_control_table(results, comparisons)
        yield ""
    yield from (f"- {warning}" for warning in results.warnings if overall.scope in warning or "missing" in warning)
    yield f"- answers: sha256 {manifest.answers[:16]}, questions: sha256 {manifest.ids[:16]}."


def build_table(results: Results, overall: ScopeResult, tuned: set[str]) -> Iterable[str]:
    """Write the table of strategies.

    Yields:
        Lines of Markdown.
    """
    scopes = results.scopes[:-1]
    signal = any(row.signal for row in overall.rows)
    headers = ["strategy", *(column.title for column in results.columns)]
    headers += ["d'", "criterion"] if signal else []
    headers += [" / ".join(scope.scope for scope in scopes)] if scopes else []
    yield format_row([*headers, "passes per token"])
    yield format_row(["---"] * (len(headers) + 1))
    is_requested = {arm.label: arm.requested for arm in results.arms}
    for index in sort_rows(overall.rows):
        row, cost = overall.rows[index], results.costs[index]
        name = f"`{row.strategy}`" + (
            " (tuned)" if row.strategy in tuned else "" if is_requested[row.strategy] else " (control)"
        )
        cells = [name, *(format_cell(row, column) for column in results.columns)]
        if signal:
            cells += (
                [f"{row.signal.sensitivity:.2f}", f"{row.signal.criterion:+.2f}"]
                if row.signal
                else [NO_VALUE, NO_VALUE]
            )
        if scopes:
            first = results.columns[0]
            cells.append(
                " / ".join(format_number(scope.rows[index].metrics[first.name].value, first) for scope in scopes)
            )
        yield format_row([*cells, format_passes(cost)])


def sort_rows(rows: list[StrategyResult]) -> list[int]:
    """Return row indices with plain decoding first and tuned rows below their strategy."""
    names = [row.strategy for row in rows]
    return sorted(range(len(rows)), key=lambda index: (names[index] != "plain", names[index]))


def format_cell(row: StrategyResult, column: MetricColumn) -> str:
    estimate, difference = row.metrics[column.name], row.against_plain.get(column.name)
    value = format_number(estimate.value, column)
    if column.name not in TESTED_METRICS:
        return value
    if difference is None:
        return f"{value} {format_interval(estimate, column)}"
    difference_text = (
        f"{format_number(difference.value, column, sign=True)} {format_interval(difference, column, sign=True)}"
    )
    mark = {"better": "**", "worse": "**", "unclear": ""}[difference.verdict]
    return f"{mark}{value}{mark}<br>{difference_text}, {format_p_value(difference)}"


def build_control_table(results: Results, comparisons: list[ControlComparison]) -> Iterable[str]:
    """Write the table of differences to matched controls.

    Yields:
        Lines of Markdown.
    """
    columns = [column for column in results.columns if column.name in TESTED_METRICS]
    yield format_row(["strategy minus matched control", *(column.title for column in columns), "outcome"])
    yield format_row(["---"] * (len(columns) + 2))
    for comparison in sorted(comparisons, key=lambda comparison: comparison.strategy):
        cells = []
        for column in columns:
            difference = comparison.differences[column.name]
            difference_text = format_number(difference.value, column, sign=True)
            cells.append(
                f"{difference_text} {format_interval(difference, column, sign=True)}, {format_p_value(difference)}"
            )
        verdicts = "; ".join(
            describe_control_comparison(comparison, column) for column in results.columns if column.primary
        )
        yield format_row([f"`{comparison.strategy}` - `{comparison.control}`", *cells, verdicts])


def format_passes(cost: StrategyCost) -> str:
    value = cost.passes_per_token and cost.passes_per_token.value
    return NO_VALUE if value is None else f"{value:.2f}"


def format_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
