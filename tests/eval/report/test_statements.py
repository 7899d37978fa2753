"""The sentences at the beginning of the reports."""

from __future__ import annotations

import pytest

from eval.core.results import (
    ArmSummary,
    BiasResult,
    ControlComparison,
    Difference,
    Estimate,
    GainSplit,
    MetricColumn,
    Results,
    ScopeResult,
    SplitMetric,
    StrategyCost,
    StrategyResult,
)
from eval.report.statements import describe_outcome, describe_strategies

COLUMNS = [
    MetricColumn(name="chair_s", title="CHAIR_s", better="lower", percent=True, primary=True),
    MetricColumn(name="recall", title="Recall", better="higher", percent=True, primary=False),
]


def build_difference(value: float, p: float, verdict: str, **more: int) -> Difference:
    return Difference.model_validate(
        {
            "value": value,
            "low": value - 0.01,
            "high": value + 0.01,
            "test": "exchange",
            "p": p,
            "verdict": verdict,
            **more,
        }
    )


def build_arm(label: str, *, requested: bool = True) -> ArmSummary:
    return ArmSummary(
        label=label,
        parameters={},
        branches=1,
        controls=[],
        requested=requested,
        answered=9,
        missing=0,
        empty=0,
        truncated=0,
    )


@pytest.fixture
def results() -> Results:
    rows = [
        StrategyResult(strategy="plain", metrics={"chair_s": Estimate(value=0.5), "recall": Estimate(value=0.8)}),
        StrategyResult(
            strategy="vhr",
            metrics={"chair_s": Estimate(value=0.37), "recall": Estimate(value=0.777)},
            against_plain={
                "chair_s": build_difference(-0.13, 0.007, "better"),
                "recall": build_difference(-0.023, 0.02, "worse"),
            },
        ),
        StrategyResult(
            strategy="vcd",
            metrics={"chair_s": Estimate(value=0.49), "recall": Estimate(value=0.8)},
            against_plain={
                "chair_s": build_difference(-0.01, 0.4, "unclear"),
                "recall": build_difference(0, 1, "unclear"),
            },
        ),
        StrategyResult(
            strategy="truncate",
            metrics={"chair_s": Estimate(value=0.5), "recall": Estimate(value=0.8)},
            against_plain={"chair_s": build_difference(0, 1, "unclear"), "recall": build_difference(0, 1, "unclear")},
        ),
    ]
    same = {column.name: build_difference(0.01, 0.6, "unclear") for column in COLUMNS}
    return Results(
        task="chair",
        title="CHAIR",
        model="fake",
        greedy=False,
        seeds=[0],
        complete=True,
        columns=COLUMNS,
        arms=[build_arm("plain"), build_arm("vhr"), build_arm("vcd"), build_arm("truncate", requested=False)],
        scopes=[
            ScopeResult(
                scope="captions",
                questions=9,
                images=9,
                rows=rows,
                control_comparisons=[ControlComparison(strategy="vhr", control="truncate", differences=same)],
            )
        ],
        costs=[
            StrategyCost(
                strategy="vhr",
                answers=9,
                tokens=90,
                passes_per_token=Estimate(value=1.82),
                first_token=0.1,
                tokens_per_second=Estimate(value=10),
                slowdown=1.3,
            )
        ],
        warnings=[],
    )


def test_a_strategy_has_a_sentence_with_gain_price_control_and_cost(results: Results) -> None:
    sentences = dict(describe_strategies(results))
    assert sentences["vhr"] == (
        "CHAIR_s is better: lower by 26 % (p = 0.007); Recall is worse: lower by 2.3 points (p = 0.020); "
        "not significantly better than its control truncate in CHAIR_s; 1.8 passes per token; "
        "1.3 times the time of plain decoding."
    )
    assert sentences["vcd"] == "CHAIR_s does not differ significantly (\N{MINUS SIGN}1.0, p = 0.40)."
    assert set(sentences) == {"vhr", "vcd"}  # controls are not requested


def test_the_outcome_names_the_strategies_that_are_better(results: Results) -> None:
    assert describe_outcome(results) == "Better than plain decoding in CHAIR_s, but worse in another metric: vhr."
    results.scopes[0].rows[1].against_plain["recall"].verdict = "unclear"
    assert describe_outcome(results) == "Better than plain decoding in CHAIR_s, and worse in no metric: vhr."
    results.scopes[0].rows[1].against_plain["chair_s"].verdict = "unclear"
    assert describe_outcome(results) == "No strategy is significantly better than plain decoding in CHAIR_s."


def test_equal_answers_are_stated(results: Results) -> None:
    results.scopes[0].rows[2].against_plain["chair_s"] = build_difference(0, 1, "unclear", gained=0, lost=0)
    assert dict(describe_strategies(results))["vcd"] == "CHAIR_s: no question differs."


def test_the_gain_of_a_sampled_strategy_is_split_in_its_sentence(results: Results) -> None:
    parts = {"gain": Estimate(value=-0.13), "bias": Estimate(value=-0.02), "rest": Estimate(value=-0.01, low=-0.03)}
    parts["rest"].high = 0.02
    metric = SplitMetric(plain=0.5, strategy=0.37, cut=Estimate(value=-0.1), **parts)
    split = GainSplit(strategy="vhr", control="truncate", added=0.1, metrics={"chair_s": metric})
    bias = BiasResult(answers=9, left_out=0, bounded=0, auroc=Estimate(value=0.9), controls=[], splits=[split])
    results.scopes[0].bias = bias
    sentence = dict(describe_strategies(results))["vhr"].replace("\N{MINUS SIGN}", "-")
    assert "of the -13.0 points of CHAIR_s are -10.0 cut, -2.0 bias, -1.0 rest [-3.0, +2.0];" in sentence
    metric.cut = None
    sentence = dict(describe_strategies(results))["vhr"].replace("\N{MINUS SIGN}", "-")
    assert "are -2.0 bias, -1.0 rest" in sentence
