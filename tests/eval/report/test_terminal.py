"""Tables for a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from eval.core.results import (
    ControlComparison,
    Difference,
    Estimate,
    MetricColumn,
    Results,
    ScopeResult,
    SignalDetection,
    StrategyResult,
)
from eval.report.formatting import MINUS
from eval.report.terminal import format_cell, print_results

F1 = MetricColumn(name="f1", title="F1", better="higher", percent=True, primary=True)


@pytest.fixture
def results() -> Results:
    change = Difference(value=-0.01, low=-0.03, high=0.01, test="exchange", p=0.4, detectable=0.0261)
    rows = [
        StrategyResult(
            strategy="plain",
            metrics={"f1": Estimate(value=0.92)},
            signal=SignalDetection(sensitivity=1.25, criterion=0.1),
        ),
        StrategyResult(
            strategy="agla:alpha=1.5",
            metrics={"f1": Estimate(value=0.91)},
            against_plain={"f1": change},
            signal=SignalDetection(sensitivity=1.07, criterion=-0.33),
        ),
    ]
    comparison = ControlComparison(strategy="agla:alpha=1.5", control="plain", differences={"f1": change})
    return Results(
        task="pope",
        title="POPE",
        model="fake",
        greedy=True,
        seeds=[None],
        complete=True,
        columns=[F1],
        arms=[],
        scopes=[ScopeResult(scope="random", questions=60, images=10, rows=rows, control_comparisons=[comparison])],
        costs=[],
        warnings=[],
    )


def test_stars_depend_on_the_adjusted_p_value() -> None:
    difference = Difference(value=-0.042, low=-0.06, high=-0.02, test="exchange", p=0.0001, p_holm=0.03)
    assert difference.effective_p == 0.03
    assert format_cell(Estimate(value=0.91), difference, F1) == f"91.0 [default]{MINUS}4.2*[/]"
    difference.p_holm = None
    assert format_cell(Estimate(value=0.91), difference, F1).endswith("4.2***[/]")


def test_a_missing_value_is_shown_as_such() -> None:
    assert format_cell(Estimate(value=None), None, F1) == "n/a"


def test_a_second_table_shows_detectable_differences(results: Results) -> None:
    output = io.StringIO()
    print_results(results, Console(file=output, width=100))
    lines = [line.strip("│ ").split() for line in output.getvalue().splitlines()]
    assert ["agla:alpha=1.5", "│", "2.6", "│", "1.07", "│", f"{MINUS}0.33"] in lines
    assert ["plain", "│", "│", "1.25", "│", "+0.10"] in lines
    assert "agla:alpha=1.5 does not differ significantly from plain in F1" in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) <= 100


def test_a_run_of_plain_decoding_alone_has_no_second_table(results: Results) -> None:
    [scope] = results.scopes
    scope.control_comparisons, scope.rows = [], scope.rows[:1]
    scope.rows[0].signal = None
    output = io.StringIO()
    print_results(results, Console(file=output, width=100))
    assert "plain" in output.getvalue()
    assert "etectable" not in output.getvalue()
