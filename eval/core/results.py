"""The results of a run, as written to results.json.

A number without a value is null. The second name of an alias is the key that version 0.1.0 wrote.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, JsonValue

from eval.core.metrics import Metric
from eval.core.statistics import CONFIDENCE, RESAMPLES, Interval


def _replace_nan(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_replace_nan)]
Verdict = Literal["better", "worse", "unclear"]


class Estimate(BaseModel):
    """A value with its confidence interval."""

    value: Number
    low: Number = None
    high: Number = None

    @classmethod
    def from_interval(cls, interval: Interval) -> Estimate:
        """Copy value and bounds of an interval."""
        return cls(value=interval.value, low=interval.low, high=interval.high)


class Difference(BaseModel):
    """A paired difference: strategy minus reference.

    Attributes:
        low: Lower bound of the interval. It is `tango_low` if no question differs, and None if there is no interval.
        high: Upper bound of the interval, likewise.
        test: `mcnemar`, or `exchange` for the permutation test within images.
        p: The p-value.
        p_holm: The p-value adjusted over the requested strategies.
        gained: Questions that only the strategy answers correctly.
        lost: Questions that only the reference answers correctly.
        tango_low: Lower bound of Tango's score interval over distinct questions, for a difference with counts of them.
        tango_high: Its upper bound.
        detectable: The smallest true difference that is detected with a power of 80 %.
    """

    value: Number
    low: Number
    high: Number
    test: Literal["mcnemar", "exchange"]
    p: Number
    p_holm: Number = None
    gained: int | None = None
    lost: int | None = None
    tango_low: Number = None
    tango_high: Number = None
    detectable: Number = None
    verdict: Verdict = "unclear"

    @property
    def effective_p(self) -> float | None:
        """The adjusted p-value if there is one, else the unadjusted one."""
        return self.p if self.p_holm is None else self.p_holm

    @property
    def is_without_discordance(self) -> bool:
        """Whether both strategies answer every question alike, as far as questions are counted."""
        return self.gained == 0 and self.lost == 0


class SignalDetection(BaseModel):
    """Sensitivity (d') and criterion of yes/no answers."""

    sensitivity: float
    criterion: float


class StrategyResult(BaseModel):
    """The metrics of one strategy in one scope."""

    strategy: str
    metrics: dict[str, Estimate]
    against_plain: dict[str, Difference] = {}
    signal: SignalDetection | None = None
    warnings: list[str] = []


class ControlComparison(BaseModel):
    """A strategy minus its matched control, which has the same cut and temperature and no branch."""

    strategy: str
    control: str
    differences: dict[str, Difference]


class BiasMetric(BaseModel):
    """One metric of plain decoding at two thresholds on p(yes), and of a strategy.

    Attributes:
        plain: At the threshold 0 of ln p(yes) - ln p(no).
        control: At the threshold that gives the yes ratio of the strategy.
        strategy: Of the strategy, on the same questions.
        gain: Strategy minus plain.
        bias: Control minus plain: the part of the gain that the threshold gives.
        beyond: Strategy minus control, with interval and test.
    """

    plain: Number
    control: Number
    strategy: Number
    gain: Number
    bias: Number
    beyond: Difference


class BiasControl(BaseModel):
    """A strategy beside plain decoding at the threshold that gives its yes ratio.

    Attributes:
        threshold: Whether every scope has a threshold, or all scopes together have one.
        added: The constant that moves the threshold to 0 when it is added to the logit of yes. None for all scopes
            together with a threshold each, and if all answers are alike.
        metrics: The metrics by name.
    """

    strategy: str
    threshold: Literal["scope", "all"]
    added: Number
    metrics: dict[str, BiasMetric]


class SplitMetric(BaseModel):
    """The gain of a strategy over sampled plain decoding, which is the sum of the three parts.

    Attributes:
        plain: Of sampled plain decoding.
        strategy: Of the strategy, on the same questions.
        gain: Strategy minus plain.
        cut: Control `truncate` minus plain. None if the strategy has no such control.
        bias: Expected change if a constant is added to ln p(yes) - ln p(no) under the same cut and temperature.
        rest: What remains of the gain.
    """

    plain: Number
    strategy: Number
    gain: Estimate
    cut: Estimate | None
    bias: Estimate
    rest: Estimate


class GainSplit(BaseModel):
    """The parts of the gain of a strategy under sampled decoding.

    Attributes:
        control: Label of the control whose gain is the cut, if there is one.
        added: The constant of the part `bias`. It changes the yes ratio as the strategy changes that of the control.
            None if it is infinite.
        metrics: The metrics by name.
    """

    strategy: str
    control: str | None
    added: Number
    metrics: dict[str, SplitMetric]


class BiasResult(BaseModel):
    """The yes-bias control in one scope.

    Attributes:
        answers: Answers of plain decoding with a score ln p(yes) - ln p(no).
        left_out: Answers without a score. They are left out for all strategies.
        bounded: Answers whose score is a bound, because the server did not list one of the words.
        unlike_score: Answers of greedy plain decoding that are read otherwise than the sign of their score. None under
            sampled decoding.
        auroc: Area under the ROC curve of the score of plain decoding.
        controls: Strategies and thresholds.
        splits: Strategies under sampled decoding.
    """

    answers: int
    left_out: int
    bounded: int
    unlike_score: int | None = None
    auroc: Estimate
    controls: list[BiasControl]
    splits: list[GainSplit] = []


class ScopeResult(BaseModel):
    """All strategies in one scope of the task: a split, a subtask, or everything together.

    Attributes:
        clusters: Number of clusters that intervals resample. None in results of earlier versions, which have images.
        constant_rows: The metrics of constant answers.
        bias: The yes-bias control, if plain decoding has scores.
    """

    scope: str
    questions: int
    images: int = Field(validation_alias=AliasChoices("images", "pictures"))
    clusters: int | None = None
    rows: list[StrategyResult]
    constant_rows: list[StrategyResult] = []
    control_comparisons: list[ControlComparison] = Field(
        validation_alias=AliasChoices("control_comparisons", "matches")
    )
    bias: BiasResult | None = None


class StrategyCost(BaseModel):
    """Cost from the receipts. Without receipts, tokens and times are measured by the client.

    Attributes:
        passes_per_token: Rows run through the model per token. Prompts and extra requests are included.
        first_token: Median seconds to the first token, without the time in the queue.
        slowdown: Tokens per second of plain decoding, divided by those of this strategy.
    """

    strategy: str
    answers: int
    tokens: int
    passes_per_token: Estimate | None
    first_token: Number
    tokens_per_second: Estimate
    slowdown: Number = None


class MetricColumn(BaseModel):
    """The description of a metric."""

    name: str
    title: str
    better: Literal["higher", "lower", "neither"]
    percent: bool
    primary: bool
    meaning: str = ""

    @classmethod
    def from_metric(cls, metric: Metric) -> MetricColumn:
        """Copy the description of a metric."""
        return cls(
            name=metric.name,
            title=metric.title,
            better=metric.better,
            percent=metric.percent,
            primary=metric.primary,
            meaning=metric.meaning,
        )


class ArmSummary(BaseModel):
    """One arm of the run: its parameters and counts of its answers."""

    label: str
    parameters: dict[str, dict[str, JsonValue]]
    branches: int
    controls: list[str]
    requested: bool = Field(validation_alias=AliasChoices("requested", "asked_for"))
    answered: int
    missing: int
    empty: int
    truncated: int = Field(validation_alias=AliasChoices("truncated", "cut_short"))
    notes: dict[str, JsonValue] = {}


class TableRow(BaseModel):
    """One row of a table."""

    strategy: str
    values: list[Number]


class ExtraTable(BaseModel):
    """Numbers beside the comparison, without intervals and tests.

    Attributes:
        decimals: Number of decimals of values that are not in percent.
    """

    title: str
    headers: list[str] = Field(validation_alias=AliasChoices("headers", "heads"))
    rows: list[TableRow]
    percent: bool = True
    decimals: int = 0


class DelongComparison(BaseModel):
    """DeLong's interval and test of a difference of areas, which take mentions as independent."""

    low: Number
    high: Number
    p: Number


class SignalResult(BaseModel):
    """How well a signal separates hallucinated mentions from real ones.

    Attributes:
        auroc: Area under the ROC curve.
        average_precision: Average precision, with hallucinated mentions as positives.
        check_lead: Area of the check minus the area of this signal. None for the check itself.
        delong: DeLong's test of this difference. None in results of earlier versions, too.
    """

    auroc: Estimate
    average_precision: Estimate
    check_lead: Estimate | None = None
    delong: DelongComparison | None = None


class CalibrationBin(BaseModel):
    """The mentions whose probability lies between two bounds: its mean, and the share of real mentions."""

    low: float
    high: float
    mentions: int
    probability: float
    real: float


class DetectionResult(BaseModel):
    """Detection of hallucinated mentions in the answers of one strategy, in a run with `--check`.

    Attributes:
        mentions: Mentions that are claims.
        hallucinated: Those whose object is not in the image.
        mentions_without_claim: Mentions that are no claims. They are left out.
        signals: Signals by name.
        calibration_error: Expected calibration error of the check.
        calibration: The bins of the reliability diagram.
    """

    strategy: str
    mentions: int
    hallucinated: int = Field(validation_alias=AliasChoices("hallucinated", "invented"))  # "invented" in stored studies
    mentions_without_claim: int
    signals: dict[str, SignalResult]
    calibration_error: Estimate
    calibration: list[CalibrationBin]


class Results(BaseModel):
    """The content of results.json.

    Attributes:
        missing_bias: The reason why a run of yes/no questions has no yes-bias control.
        cluster: Name of the things that intervals resample.
    """

    task: str
    title: str
    model: str
    greedy: bool
    seeds: list[int | None]
    complete: bool
    columns: list[MetricColumn]
    arms: list[ArmSummary] = Field(validation_alias=AliasChoices("arms", "competitors"))
    scopes: list[ScopeResult] = Field(validation_alias=AliasChoices("scopes", "parts"))
    costs: list[StrategyCost]
    warnings: list[str]
    tables: list[ExtraTable] = []
    detection: list[DetectionResult] = []
    missing_bias: str | None = None
    cluster: str = "image"
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
