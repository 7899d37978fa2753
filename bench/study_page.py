"""The tables and the figure of docs/results.md, from the runs of `bench/study.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import contest, study_figure
from bench.page import DOCS, fill
from eval.manifest import Manifest, read
from eval.report.wording import NONE, chance, interval, number, outcome
from eval.results import Column, Cost, Difference, Estimate, Match, Part, Results, Row

PAGE = DOCS / "results.md"
NUMBERS = DOCS / "results.json"
PRECISE = ("accuracy", "chair_s", "chair_i")  # metrics that are shown with what stands behind the difference


def write(runs: Path, tuned: Mapping[str, str], state: Mapping[str, str]) -> None:
    """What is not among the runs stays as it is: each tells what answered."""
    found = {folder.name: read_run(folder) for folder in sorted(runs.iterdir()) if (folder / "results.json").is_file()}
    if others := {manifest.plan.weights for _, manifest in found.values()} - {state["weights"]}:
        raise SystemExit(f"some of the answers are of other weights than the server's: {others}")
    answered_by = ", ".join(f"{what} {value}" for what, value in state.items())
    sections = {
        name: "\n".join([*section(results, manifest, tuned), f"- {answered_by}."])
        for name, (results, manifest) in found.items()
        if not name.endswith("tuning")
    }
    for name, compared in (("pope", contest.splits), ("chair", contest.at_equal_recall)):
        if (greedy := f"{name}-greedy") in found:
            run = contest.Answered.of(runs / greedy)
            if contest.OURS in run.plan.labels:
                sections[f"auto-{name}"] = "\n".join(compared(run))
    for name, text in sections.items():
        fill(PAGE, name, text)
    if {"pope-greedy", "chair-greedy"} <= found.keys():
        drawn = study_figure.drawn(found["pope-greedy"][0], found["chair-greedy"][0])
        (DOCS / "results.svg").write_text(drawn)
    told = json.loads(NUMBERS.read_text())
    told["tuned"] |= tuned
    told["runs"] |= {name: {"state": state, **compact(results)} for name, (results, _) in found.items()}
    NUMBERS.write_text(json.dumps(told, separators=(",", ":")) + "\n")


def compact(results: Results) -> dict[str, Any]:
    """To five digits: [value, low, high], and for a difference [..., p, p after Holm, detectable]."""
    whole, names = results.parts[-1], [column.name for column in results.columns]
    return {
        "greedy": results.greedy,
        "seeds": results.seeds,
        "questions": whole.questions,
        "pictures": whole.pictures,
        "strategies": {
            row.strategy: {
                "parameters": each.parameters,
                "passes_per_token": bounds(cost.passes_per_token),
                **{name: bounds(row.metrics[name]) for name in names},
                "against_plain": {name: tested(difference) for name, difference in row.against_plain.items()},
                "splits": {
                    part.scope: {name: bounds(part.rows[place].metrics[name]) for name in names}
                    for part in results.parts[:-1]
                },
            }
            for place, (row, each, cost) in enumerate(zip(whole.rows, results.competitors, results.costs, strict=True))
        },
        "against_controls": [
            {
                "strategy": match.strategy,
                "control": match.control,
                **{name: tested(difference) for name, difference in match.differences.items()},
            }
            for match in telling(results)
        ],
    }


def telling(results: Results) -> list[Match]:
    """Without those that the table has already: greedy, the control of a strategy alone is plain decoding."""
    return [match for match in results.parts[-1].matches if match.control != "plain"]


def bounds(estimate: Estimate | Difference | None) -> list[float | None]:
    return [] if estimate is None else [shortened(each) for each in (estimate.value, estimate.low, estimate.high)]


def tested(difference: Difference) -> list[float | None]:
    rest = (difference.p, difference.p_holm, difference.detectable)
    return [*bounds(difference), *(shortened(each) for each in rest)]


def shortened(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def read_run(folder: Path) -> tuple[Results, Manifest]:
    return Results.model_validate_json((folder / "results.json").read_bytes()), read(folder)


def section(results: Results, manifest: Manifest, tuned: Mapping[str, str]) -> Iterable[str]:
    whole = results.parts[-1]
    decoding = "greedy" if results.greedy else f"temperature 1, seeds {', '.join(map(str, results.seeds))}"
    yield f"{whole.questions // len(results.seeds)} questions on {whole.pictures} pictures, {decoding}."
    yield ""
    yield from table(results, whole, set(tuned.values()) - tuned.keys())
    yield ""
    matches = telling(results)
    if matches:
        yield from control_table(results, matches)
        yield ""
    yield from (f"- {warning}" for warning in results.warnings if whole.scope in warning or "missing" in warning)
    yield f"- answers: sha256 {manifest.answers[:16]}, questions: sha256 {manifest.ids[:16]}."


def table(results: Results, whole: Part, tuned: set[str]) -> Iterable[str]:
    scopes = results.parts[:-1]
    signal = any(row.signal for row in whole.rows)
    heads = ["strategy", *(column.title for column in results.columns)]
    heads += ["d'", "criterion"] if signal else []
    heads += [" / ".join(part.scope for part in scopes)] if scopes else []
    yield line([*heads, "passes a token"])
    yield line(["---"] * (len(heads) + 1))
    asked = {each.label: each.asked_for for each in results.competitors}
    for place in ordered(whole.rows):
        row, cost = whole.rows[place], results.costs[place]
        name = f"`{row.strategy}`" + (
            " (tuned)" if row.strategy in tuned else "" if asked[row.strategy] else " (control)"
        )
        cells = [name, *(cell(row, column) for column in results.columns)]
        if signal:
            cells += [f"{row.signal.sensitivity:.2f}", f"{row.signal.criterion:+.2f}"] if row.signal else [NONE, NONE]
        if scopes:
            first = results.columns[0]
            cells.append(" / ".join(number(part.rows[place].metrics[first.name].value, first) for part in scopes))
        yield line([*cells, passes(cost)])


def ordered(rows: list[Row]) -> list[int]:
    """Plain first, a tuned row below its strategy."""
    names = [row.strategy for row in rows]
    return sorted(range(len(rows)), key=lambda place: (names[place] != "plain", names[place]))


def cell(row: Row, column: Column) -> str:
    estimate, difference = row.metrics[column.name], row.against_plain.get(column.name)
    value = number(estimate.value, column)
    if column.name not in PRECISE:
        return value
    if difference is None:
        return f"{value} {interval(estimate, column)}"
    moved = f"{number(difference.value, column, sign=True)} {interval(difference, column, sign=True)}"
    mark = {"better": "**", "worse": "**", "unclear": ""}[difference.verdict]
    return f"{mark}{value}{mark}<br>{moved}, {chance(difference)}"


def control_table(results: Results, matches: list[Match]) -> Iterable[str]:
    columns = [column for column in results.columns if column.name in PRECISE]
    yield line(["strategy minus matched control", *(column.title for column in columns), "so it"])
    yield line(["---"] * (len(columns) + 2))
    for match in sorted(matches, key=lambda match: match.strategy):
        cells = []
        for column in columns:
            difference = match.differences[column.name]
            moved = number(difference.value, column, sign=True)
            cells.append(f"{moved} {interval(difference, column, sign=True)}, {chance(difference)}")
        says = "; ".join(outcome(match, column) for column in results.columns if column.primary)
        yield line([f"`{match.strategy}` - `{match.control}`", *cells, says])


def passes(cost: Cost) -> str:
    value = cost.passes_per_token and cost.passes_per_token.value
    return NONE if value is None else f"{value:.2f}"


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
