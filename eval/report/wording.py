"""Numbers as a reader wants them."""

from __future__ import annotations

from eval.results import Column, Difference, Estimate, Match, Part, Results, Table

NONE = "n/a"
MINUS = "\N{MINUS SIGN}"
OUTCOMES = {"better": "beats", "worse": "loses to", "unclear": "is not told apart from"}


def number(value: float | None, column: Column, *, sign: bool = False) -> str:
    if value is None:
        return NONE
    return f"{value * (100 if column.percent else 1):{'+' if sign else ''}.1f}".replace("-", MINUS)


def entry(value: float | None, table: Table) -> str:
    if value is None:
        return NONE
    return f"{value * 100:.1f}" if table.percent else f"{value:.0f}"


def interval(estimate: Estimate | Difference, column: Column, *, sign: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low, column, sign=sign)}, {number(estimate.high, column, sign=sign)}]"


def chance(difference: Difference) -> str:
    p = difference.chance
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def size(part: Part, results: Results) -> str:
    """How much was asked; under several seeds every question has as many answers."""
    if len(results.seeds) > 1:
        return f"{part.questions} answers under {len(results.seeds)} seeds on {part.pictures} pictures"
    return f"{part.questions} questions on {part.pictures} pictures"


def least(difference: Difference, column: Column) -> str:
    """The minimum detectable effect. Nothing where nothing varied."""
    return "" if difference.detectable is None else f"detectable {number(difference.detectable, column)}"


def sureness(difference: Difference, column: Column) -> str:
    return ", ".join(filter(None, (chance(difference), least(difference, column))))


def explained(difference: Difference, column: Column) -> str:
    """What stands behind a difference, for the pointer that rests on it."""
    test = "exact McNemar" if difference.test == "mcnemar" else "exchange within pictures"
    said = [f"{test}, p = {difference.p:.4f}" if difference.p is not None else test]
    if difference.p_holm is not None:
        said.append(f"after Holm {difference.p_holm:.4f}")
    if difference.gained is not None:
        said.append(f"{difference.gained} questions gained, {difference.lost} lost")
    return "; ".join(said)


def outcome(match: Match, column: Column) -> str:
    difference = match.differences[column.name]
    change = f"{number(difference.value, column, sign=True)} {interval(difference, column, sign=True)}"
    said = ", ".join(filter(None, (change.strip(), sureness(difference, column))))
    return f"{OUTCOMES[difference.verdict]} {match.control} in {column.title} ({said})"
