"""The outcome of a run, as it is written to results.json. A number without a value is null."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, JsonValue

from eval.metrics import Metric
from eval.statistics import CONFIDENCE, RESAMPLES, Interval


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Verdict = Literal["better", "worse", "unclear"]


class Estimate(BaseModel):
    value: Number
    low: Number = None
    high: Number = None

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        return cls(value=interval.value, low=interval.low, high=interval.high)


class Difference(BaseModel):
    """Strategy minus reference, paired."""

    value: Number
    low: Number
    high: Number
    test: Literal["mcnemar", "exchange"]
    p: Number
    p_holm: Number = None  # adjusted over the strategies that were asked for
    gained: int | None = None  # questions that only the strategy has right
    lost: int | None = None
    detectable: Number = None  # least true difference that would be found with a power of 80 %
    verdict: Verdict = "unclear"

    @property
    def chance(self) -> float | None:
        """The p-value that counts: the adjusted one where there is one."""
        return self.p if self.p_holm is None else self.p_holm


class Signal(BaseModel):
    sensitivity: float
    criterion: float


class Row(BaseModel):
    strategy: str
    metrics: dict[str, Estimate]
    against_plain: dict[str, Difference] = {}
    signal: Signal | None = None
    warnings: list[str] = []


class Match(BaseModel):
    """A strategy against the control that has its cut and its temperature, and no branch."""

    strategy: str
    control: str
    differences: dict[str, Difference]


class Part(BaseModel):
    scope: str
    questions: int
    pictures: int
    rows: list[Row]
    matches: list[Match]


class Cost(BaseModel):
    """From the receipts; without receipts, tokens and speed as the client saw them."""

    strategy: str
    answers: int
    tokens: int
    passes_per_token: Estimate | None  # rows run through the model, prompts and questions on the way included
    first_token: Number  # seconds, median; without the time in the queue
    tokens_per_second: Estimate
    slowdown: Number = None  # plain's tokens a second over this one's


class Column(BaseModel):
    """What a metric is, for a reader of the file."""

    name: str
    title: str
    better: Literal["higher", "lower", "neither"]
    percent: bool
    primary: bool

    @classmethod
    def of(cls, metric: Metric) -> Column:
        return cls(
            name=metric.name,
            title=metric.title,
            better=metric.better,
            percent=metric.percent,
            primary=metric.primary,
        )


class Competitor(BaseModel):
    label: str
    parameters: dict[str, dict[str, JsonValue]]
    branches: int
    controls: list[str]
    asked_for: bool
    answered: int
    missing: int
    empty: int
    cut_short: int
    notes: dict[str, JsonValue] = {}


class Aside(BaseModel):
    strategy: str
    values: list[Number]


class Table(BaseModel):
    """Numbers beside the comparison, without intervals or tests."""

    title: str
    heads: list[str]
    rows: list[Aside]
    percent: bool = True


class Results(BaseModel):
    task: str
    title: str
    model: str
    greedy: bool
    seeds: list[int | None]
    complete: bool
    columns: list[Column]
    competitors: list[Competitor]
    parts: list[Part]
    costs: list[Cost]
    warnings: list[str]
    tables: list[Table] = []
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
