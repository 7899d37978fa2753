"""The sentences at the beginning of the reports."""

from __future__ import annotations

import pytest

from eval.core.results import (
    ArmSummary,
    BiasControl,
    BiasMetric,
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
from eval.report.statements import describe_strategies, explain_metrics, recommend_strategy

COLUMNS = [
    MetricColumn(name=name, title=title, better=better, percent=True, primary=primary, meaning=meaning)
    for name, title, better, primary, meaning in (
        ("chair_s", "CHAIR_s", "lower", True, "share of captions that mention an absent object"),
        ("recall", "Recall", "higher", False, "share of present objects that captions mention"),
    )
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
        columns=[column.model_copy() for column in COLUMNS],
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


def describe_outcomes(results: Results, **verdicts: str) -> str:
    """Recommend a strategy after the verdicts of vhr are replaced, those of its control under `control`."""
    [comparison] = results.scopes[0].control_comparisons
    for name, verdict in verdicts.items():
        differences = comparison.differences if name == "control" else results.scopes[0].rows[1].against_plain
        column = "chair_s" if name == "control" else name
        differences[column] = differences[column].model_copy(update={"verdict": verdict})
    return recommend_strategy(results)


def test_a_gain_that_a_control_gives_as_well_is_not_recommended(results: Results) -> None:
    text = "vhr is not needed: it is better than plain decoding in CHAIR_s, but not significantly better than truncate."
    assert describe_outcomes(results) == text
    assert describe_outcomes(results, recall="unclear") == text


def test_a_gain_with_a_price_is_recommended_with_a_condition(results: Results) -> None:
    assert describe_outcomes(results, control="better") == (
        "Use vhr only if a worse Recall is acceptable, and plain decoding otherwise: it is better in CHAIR_s."
    )


def test_the_largest_gain_without_a_price_is_recommended(results: Results) -> None:
    assert describe_outcomes(results, control="better", recall="unclear") == (
        "Use vhr: it is better than plain decoding in CHAIR_s, and significantly worse in no metric, at 1.8 passes "
        "per token and 1.3 times the time of plain decoding."
    )
    results.scopes[0].rows[2].against_plain["chair_s"] = build_difference(-0.2, 0.001, "better")
    results.scopes[0].rows[2].warnings = ["Length changes by +30%"]
    assert recommend_strategy(results) == (
        "Use vcd: it is better than plain decoding in CHAIR_s, and significantly worse in no metric. Length changes by "
        "+30%. Other gains at no price: vhr (1.8 passes per token). The strategies are not tested against each other."
    )


def test_gains_in_different_metrics_are_not_compared(results: Results) -> None:
    """The first primary metric comes first, even if the gain in the second one is larger."""
    results.columns[1].primary = True
    unchanged = build_difference(0, 1, "unclear")
    changes = {
        "vhr": {"chair_s": unchanged, "recall": build_difference(0.3, 0.001, "better")},
        "vcd": {"chair_s": build_difference(-0.02, 0.001, "better"), "recall": unchanged},
    }
    for row in results.scopes[0].rows:
        row.against_plain = changes.get(row.strategy, row.against_plain)
    results.scopes[0].control_comparisons = []
    assert recommend_strategy(results).startswith("Use vcd: it is better than plain decoding in CHAIR_s,")


def test_plain_decoding_is_recommended_with_the_size_that_a_run_detects(results: Results) -> None:
    text = "Use plain decoding: no strategy is significantly better in CHAIR_s."
    assert describe_outcomes(results, chair_s="unclear") == text
    for row, detectable in zip(results.scopes[0].rows[1:3], (0.031, 0.058), strict=True):
        row.against_plain["chair_s"].detectable = detectable
    assert recommend_strategy(results) == (
        f"{text} A run of this size detects differences in CHAIR_s from about 5.8 points on."
    )
    results.scopes[0].rows = results.scopes[0].rows[:1]
    assert recommend_strategy(results) == explain_metrics(results) == ""


@pytest.mark.parametrize(("verdict", "low"), [("better", 0.01), ("unclear", -0.01)])
def test_a_gain_that_a_threshold_gives_as_well_is_not_recommended(results: Results, verdict: str, low: float) -> None:
    """The controls of yes bias decide in greedy runs, and the rest of the gain in sampled ones."""
    results.columns[0].better = "higher"
    row = results.scopes[0].rows[1]
    row.against_plain = {
        "chair_s": build_difference(0.13, 0.007, "better"),
        "recall": build_difference(0, 1, "unclear"),
    }
    results.scopes[0].control_comparisons = []
    metric = BiasMetric(
        plain=0.5, control=0.6, strategy=0.63, gain=0.13, bias=0.1, beyond=build_difference(0.03, 0.1, verdict)
    )
    control = BiasControl(strategy="vhr", threshold="scope", added=0.1, metrics={"chair_s": metric})
    bias = BiasResult(answers=9, left_out=0, bounded=0, auroc=Estimate(value=0.9), controls=[control])
    results.scopes[0].bias = bias
    sentence = dict(describe_strategies(results))["vhr"]
    assert "another threshold on p(yes) of plain decoding gives +10.0 of the +13.0 points of CHAIR_s;" in sentence
    metric.bias = -0.02
    assert "gives none of the +13.0 points of CHAIR_s;" in dict(describe_strategies(results))["vhr"]
    is_earned = verdict == "better"
    assert recommend_strategy(results).startswith("Use vhr:" if is_earned else "vhr is not needed:")
    assert ("than another threshold on p(yes) of plain decoding." in recommend_strategy(results)) is not is_earned
    parts = {"gain": Estimate(value=0.13), "cut": None, "bias": Estimate(value=0.1)}
    part = SplitMetric(plain=0.5, strategy=0.63, rest=Estimate(value=0.03, low=low, high=0.07), **parts)
    bias.controls = []
    bias.splits = [GainSplit(strategy="vhr", control=None, added=0.1, metrics={"chair_s": part})]
    assert recommend_strategy(results).startswith("Use vhr:" if is_earned else "vhr is not needed:")


def test_metrics_of_the_sentences_are_explained(results: Results) -> None:
    assert explain_metrics(results) == (
        "CHAIR_s is the share of captions that mention an absent object, lower is better. Recall is the share of "
        "present objects that captions mention, higher is better."
    )
    results.scopes[0].rows[1].against_plain["recall"].verdict = "unclear"
    assert explain_metrics(results).count("better") == 1


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
