"""report.md: the same tables, for a terminal or a pull request."""

from __future__ import annotations

from eval.manifest import Manifest
from eval.report.wording import NONE, entry, interval, number, outcome, size, sureness
from eval.results import Cost, Part, Results, Row, Table

BAR = r"\|"  # within a cell

HOW = (
    "Each number with its 95 % interval, resampled by picture; below it the paired difference to plain decoding, with "
    "its interval, its p (after Holm for what was asked for), and the least true difference that a run of this size "
    "would find with a power of 80 %."
)


def markdown(results: Results, manifest: Manifest) -> str:
    decoding = "greedy" if results.greedy else f"temperature {manifest.plan.sampling.temperature:g}"
    seeds = "" if results.greedy else f", seeds {', '.join(map(str, results.seeds))}"
    lines = [f"# {results.title}: {results.model}", "", f"{decoding}{seeds}.", "", HOW, ""]
    for part in results.parts:
        lines += [f"## {part.scope}", "", f"{size(part, results)}.", ""]
        lines += table(part, results)
        lines += [
            f"- `{match.strategy}` {outcome(match, column)}"
            for match in part.matches
            for column in results.columns
            if column.primary
        ]
        lines.append("")
    lines += ["## Cost", "", *cost_table(results.costs), ""]
    for each in results.tables:
        lines += [f"## {each.title}", "", *aside(each), ""]
    if results.warnings:
        lines += ["## Warnings", "", *(f"- {warning}" for warning in results.warnings), ""]
    lines += ["## Made from", "", *(f"- `{name}` sha256 {value}" for name, value in manifest.files.items())]
    lines += [f"- {name} sha256 {getattr(manifest, name)}" for name in ("images", "ids", "prompts", "answers")]
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    return "\n".join(lines) + "\n"


def table(part: Part, results: Results) -> list[str]:
    heads = ["strategy", *(column.title for column in results.columns)]
    has_signal = any(row.signal for row in part.rows)
    heads += ["d'", "criterion"] if has_signal else []
    rows = [cells(row, results, has_signal) for row in part.rows]
    return [line(heads), line(["---"] * len(heads)), *map(line, rows), ""]


def cells(row: Row, results: Results, has_signal: bool) -> list[str]:
    found = [f"`{row.strategy}`"]
    for column in results.columns:
        estimate, difference = row.metrics[column.name], row.against_plain.get(column.name)
        text = f"{number(estimate.value, column)} {interval(estimate, column)}"
        if difference is not None:
            change = f"{number(difference.value, column, sign=True)} {interval(difference, column, sign=True)}"
            text += f"<br>{change.strip()}<br>{sureness(difference, column)}".removesuffix("<br>")
        found.append(text.strip())
    if has_signal:
        found += [f"{row.signal.sensitivity:.2f}", f"{row.signal.criterion:+.2f}"] if row.signal else [NONE, NONE]
    return found


def aside(found: Table) -> list[str]:
    heads = ["strategy", *found.heads]
    rows = [[f"`{row.strategy}`", *(entry(value, found) for value in row.values)] for row in found.rows]
    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]


def cost_table(costs: list[Cost]) -> list[str]:
    heads = ["strategy", "passes a token", "first token, ms", "tokens/s", "time relative to plain"]
    rows = [
        [
            f"`{each.strategy}`",
            shown(each.passes_per_token.value if each.passes_per_token else None, "{:.2f}"),
            shown(each.first_token and each.first_token * 1000, "{:.0f}"),
            shown(each.tokens_per_second.value, "{:.1f}"),
            shown(each.slowdown, "{:.2f}"),
        ]
        for each in costs
    ]
    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]


def shown(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"
