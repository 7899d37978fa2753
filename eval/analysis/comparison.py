"""Comparison of every strategy with plain decoding and with its controls, with intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eval.analysis.score_table import ScoreTable
from eval.core.metrics import Floats, Metric, RatioMetrics
from eval.core.paired_intervals import tango_interval
from eval.core.results import (
    ControlComparison,
    Difference,
    Estimate,
    ScopeResult,
    SignalDetection,
    StrategyResult,
    Verdict,
)
from eval.core.statistics import (
    Bootstrap,
    adjust_holm,
    detection_indices,
    mcnemar_test,
    minimum_detectable_difference,
    permutation_p_values,
)
from eval.core.task import BenchmarkTask
from eval.runs.plan import Arm

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """The comparison in one scope.

    Attributes:
        table: The scores of the run.
        task: The task.
        scope: The scope; None is all scopes together.
        arms: The arms.
        reference: Label of plain decoding.
        metric_names: Names of the compared metrics; None is all of the task.
    """

    table: ScoreTable
    task: BenchmarkTask
    scope: str | None
    arms: Sequence[Arm]
    reference: str
    metric_names: frozenset[str] | None = None

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The compared metrics."""
        return tuple(each for each in self.task.metrics if self.metric_names is None or each.name in self.metric_names)

    @cached_property
    def indices(self) -> list[int]:
        """Indices of the samples in the scope."""
        return self.table.find_indices_in(self.scope)

    @cached_property
    def ratios(self) -> RatioMetrics:
        """The metrics as ratios."""
        return RatioMetrics.from_metrics(self.metrics)

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resamples, shared by all arms."""
        return Bootstrap.draw(len(self.table.list_clusters(self.indices)))

    @cached_property
    def counts(self) -> dict[str, Floats]:
        """Counts of each column of the table, shape [clusters, counts]."""
        return {
            label: self.table.sum_counts(label, self.indices, self.ratios.count_names) for label in self.table.scores
        }

    def build_result(self) -> ScopeResult:
        """Compare all arms with the reference and with their controls."""
        rows = {arm.label: self._build_row(arm) for arm in self.arms}
        self._adjust_p_values(list(rows.values()))
        return ScopeResult(
            scope=self.scope or self.task.overall_scope or "all",
            questions=len(self.indices),
            images=self.table.count_images(self.indices),
            clusters=len(self.bootstrap.weights[0]),
            rows=list(rows.values()),
            constant_rows=[
                StrategyResult(strategy=name, metrics=self.estimate(name), signal=self._detect_signal(name))
                for name in self.task.constant_answers
                if name in self.table.scores
            ],
            control_comparisons=[
                self._compare_with_control(rows[arm.label], control) for arm in self.arms for control in arm.controls
            ],
        )

    def _build_row(self, arm: Arm) -> StrategyResult:
        label = arm.label
        estimates = self.estimate(label)
        against_plain = {} if label == self.reference else self.compare(label, self.reference)
        return StrategyResult(
            strategy=label,
            metrics=estimates,
            against_plain=against_plain,
            signal=self._detect_signal(label),
            warnings=self._build_warnings(estimates, against_plain),
        )

    def estimate(self, label: str) -> dict[str, Estimate]:
        """Estimate every metric of one column of the table, by name."""
        intervals = self.bootstrap.estimate(self.counts[label], self.ratios)
        return {
            metric.name: Estimate.from_interval(interval)
            for metric, interval in zip(self.metrics, intervals, strict=True)
        }

    def _compare_with_control(self, row: StrategyResult, control: str) -> ControlComparison:
        if control == self.reference:  # with the adjusted p-values, so that no report shows two for one difference
            return ControlComparison(strategy=row.strategy, control=control, differences=row.against_plain)
        differences = self.compare(row.strategy, control)
        for metric in self.task.metrics:
            differences[metric.name].verdict = decide_verdict(metric, differences[metric.name])
        return ControlComparison(strategy=row.strategy, control=control, differences=differences)

    def compare(self, label: str, reference: str, outcomes_of: str | None = None) -> dict[str, Difference]:
        """Compute the paired differences between two columns of the table, without verdicts.

        Args:
            label: Label of an arm.
            reference: Label of the column that is subtracted.
            outcomes_of: Label of the column whose outcomes McNemar's test uses, if the reference has expected counts.

        Returns:
            The difference of each metric, by name.
        """
        counts, reference_counts = self.counts[label], self.counts[reference]
        p_values = permutation_p_values(counts, reference_counts, self._permutation_metrics)
        by_permutation = dict(zip([metric.name for metric in self._permutation_metrics.metrics], p_values, strict=True))
        intervals = self.bootstrap.estimate_differences(counts, reference_counts, self.ratios)
        differences: dict[str, Difference] = {}
        for metric, interval in zip(self.metrics, intervals, strict=True):
            difference = Difference(
                value=interval.value,
                low=interval.low,
                high=interval.high,
                test="exchange",
                p=by_permutation.get(metric.name),
                detectable=minimum_detectable_difference(interval.standard_error, len(counts)),
            )
            if metric.name not in by_permutation:
                indices = self.table.find_unique_indices(self.indices)
                outcomes = (
                    self.table.list_outcomes(each, indices, metric) for each in (label, outcomes_of or reference)
                )
                result = mcnemar_test(*outcomes)
                difference.test, difference.p = "mcnemar", result.p
                difference.gained, difference.lost = result.gained, result.lost
                difference.tango_low, difference.tango_high = tango_interval(result.gained, result.lost, len(indices))
                if difference.is_without_discordance:
                    difference.low, difference.high = difference.tango_low, difference.tango_high
            differences[metric.name] = difference
        return differences

    @cached_property
    def _permutation_metrics(self) -> RatioMetrics:
        """Metrics tested by permutation: all but those of McNemar's test, which needs one answer per question."""
        several_seeds = len(self.table.seeds) > 1
        selected = [metric for metric in self.metrics if several_seeds or not metric.per_question]
        columns = [self.ratios.metrics.index(metric) for metric in selected]
        return self.ratios.select(columns)

    def _adjust_p_values(self, rows: Sequence[StrategyResult]) -> None:
        """Adjust after Holm over the requested strategies, then decide all verdicts."""
        requested = {arm.label for arm in self.arms if arm.requested}
        tested = [row for row in rows if row.against_plain and row.strategy in requested]
        adjust_p_values(self.task.metrics, [row.against_plain for row in tested])
        decide_verdicts(self.task.metrics, [row.against_plain for row in rows if row.against_plain])

    def _detect_signal(self, label: str) -> SignalDetection | None:
        names = ("tp", "fp", "tn", "fn")
        if not {"tp", "fp", "fn"} <= set(self.ratios.count_names):
            return None
        indices = detection_indices(*self.table.sum_counts(label, self.indices, names).sum(0))
        return indices and SignalDetection(sensitivity=indices.sensitivity, criterion=indices.criterion)

    def _build_warnings(self, estimates: dict[str, Estimate], against_plain: dict[str, Difference]) -> list[str]:
        if not against_plain:
            return []
        titles = {metric.name: metric.title for metric in self.task.metrics}
        warnings = [
            f"{titles[first]} drops together with {titles[second].lower()}: "
            "the captions mention fewer objects of either kind"
            for first, second in self.task.joint_drop_warnings
            if (against_plain[first].value or 0) < 0 and (against_plain[second].value or 0) < 0
        ]
        for metric in self.task.metrics:
            value, change = estimates[metric.name].value, against_plain[metric.name].value
            if metric.max_relative_change is None or value is None or change is None or value == change:
                continue
            if abs(relative := change / (value - change)) > metric.max_relative_change:
                warnings.append(f"{metric.title} changes by {relative:+.0%}")
        return warnings


def adjust_p_values(metrics: Sequence[Metric], compared: Sequence[Mapping[str, Difference]]) -> None:
    """Adjust the p-values of every metric after Holm over several comparisons.

    Args:
        metrics: The metrics.
        compared: The differences of each comparison, by name of the metric.
    """
    for metric in metrics:
        differences = [each[metric.name] for each in compared]
        p_values = [np.nan if each.p is None else each.p for each in differences]
        for difference, adjusted in zip(differences, adjust_holm(p_values), strict=True):
            difference.p_holm = None if np.isnan(adjusted) else adjusted


def decide_verdicts(metrics: Sequence[Metric], compared: Sequence[Mapping[str, Difference]]) -> None:
    """Decide the verdict of every difference, by its adjusted p-value if it has one.

    Args:
        metrics: The metrics.
        compared: The differences of each comparison, by name of the metric.
    """
    for differences in compared:
        for metric in metrics:
            differences[metric.name].verdict = decide_verdict(metric, differences[metric.name])


def decide_verdict(metric: Metric, difference: Difference) -> Verdict:
    """Decide whether a difference is significant, and in which direction."""
    p = difference.effective_p
    if p is None or p >= SIGNIFICANCE_LEVEL or not difference.value or metric.better == "neither":
        return "unclear"
    # The value counts a shared question once for each split, the test only once. Their signs may differ.
    if ((difference.gained or 0) - (difference.lost or 0)) * difference.value < 0:
        return "unclear"
    return "better" if (difference.value > 0) == (metric.better == "higher") else "worse"
