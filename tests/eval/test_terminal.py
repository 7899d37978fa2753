"""The table of a run in a terminal says what the report says."""

import io

import pytest
from rich.console import Console

from eval.report.wording import MINUS
from eval.results import Column, Difference, Estimate, Match, Part, Results, Row, Signal
from eval.terminal import cell, show

F1 = Column(name="f1", title="F1", better="higher", percent=True, primary=True)


@pytest.fixture
def results() -> Results:
    change = Difference(value=-0.01, low=-0.03, high=0.01, test="exchange", p=0.4, detectable=0.0261)
    rows = [
        Row(strategy="plain", metrics={"f1": Estimate(value=0.92)}, signal=Signal(sensitivity=1.25, criterion=0.1)),
        Row(
            strategy="agla:alpha=1.5",
            metrics={"f1": Estimate(value=0.91)},
            against_plain={"f1": change},
            signal=Signal(sensitivity=1.07, criterion=-0.33),
        ),
    ]
    match = Match(strategy="agla:alpha=1.5", control="plain", differences={"f1": change})
    return Results(
        task="pope",
        title="POPE",
        model="fake",
        greedy=True,
        seeds=[None],
        complete=True,
        columns=[F1],
        competitors=[],
        parts=[Part(scope="random", questions=60, pictures=10, rows=rows, matches=[match])],
        costs=[],
        warnings=[],
    )


def test_the_adjusted_p_value_gives_the_stars() -> None:
    difference = Difference(value=-0.042, low=-0.06, high=-0.02, test="exchange", p=0.0001, p_holm=0.03)
    assert difference.chance == 0.03
    assert cell(Estimate(value=0.91), difference, F1) == f"91.0 [default]{MINUS}4.2*[/]"
    difference.p_holm = None
    assert cell(Estimate(value=0.91), difference, F1).endswith("4.2***[/]")


def test_a_number_without_a_value() -> None:
    assert cell(Estimate(value=None), None, F1) == "n/a"


def test_what_a_run_can_detect_stands_below(results: Results) -> None:
    told = io.StringIO()
    show(results, Console(file=told, width=100))
    lines = [line.strip("│ ").split() for line in told.getvalue().splitlines()]
    assert ["agla:alpha=1.5", "│", "2.6", "│", "1.07", "│", f"{MINUS}0.33"] in lines
    assert ["plain", "│", "│", "1.25", "│", "+0.10"] in lines
    assert "agla:alpha=1.5 is not told apart from plain in F1" in told.getvalue()
    assert max(map(len, told.getvalue().splitlines())) <= 100
