"""The yes-bias control of a run: each strategy beside plain decoding at the threshold that gives its yes ratio.

Under sampled decoding, the gain of a strategy is also split into the parts that a plausibility cut, a constant added to
yes, and the rest of the strategy give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.analysis.comparison import Comparison, decide_verdict
from eval.analysis.score_table import ScoreTable, score_texts
from eval.core.metrics import Floats
from eval.core.results import BiasControl, BiasMetric, BiasResult, Estimate, GainSplit, SplitMetric
from eval.core.statistics import percentile_intervals
from eval.core.task import BenchmarkTask, Score
from eval.core.yes_bias import MatchedThreshold, SampledDecoding, match_yes_count, settle_ties, weighted_auroc
from eval.runs.plan import Arm, RunPlan

ThresholdKind = Literal["scope", "all"]
KINDS: tuple[ThresholdKind, ...] = ("scope", "all")
CONTROL_METRICS = frozenset(
    {
        "score",
        "accuracy",
        "f1",
        "harmonic_mean",
        "figure_accuracy",
        "question_accuracy",
        "easy_accuracy",
        "hard_accuracy",
        "yes_ratio",
    }
)
SPLIT_METRICS = frozenset({"accuracy", "f1", "yes_ratio"})  # of single questions, so that expected counts add up
AT_ZERO = "plain at 0"


@dataclass(frozen=True)
class ScoredSamples:
    """The samples for which plain decoding has a score ln p(yes) - ln p(no).

    Attributes:
        table: Answers and scores of all arms to these samples.
        task: The task.
        plan: The plan.
        reference: Label of plain decoding.
        left_out: Scopes of the samples without a score.
    """

    table: ScoreTable
    task: BenchmarkTask
    plan: RunPlan
    reference: str
    left_out: list[str]

    @classmethod
    def select(cls, table: ScoreTable, task: BenchmarkTask, plan: RunPlan, reference: str) -> ScoredSamples:
        """Leave out the samples without a score, and score the others again.

        Args:
            table: Answers and scores of a run.
            task: The task.
            plan: The plan.
            reference: Label of plain decoding.

        Returns:
            The samples with a score.
        """
        plain = table.answers[reference]
        scored = [each.yes_score is not None and each.yes_score.value is not None for each in plain]
        # Questions that are scored together are left out together.
        lacking = {table.samples[index].joint_key for index, has_score in enumerate(scored) if not has_score}
        kept = [index for index, sample in enumerate(table.samples) if sample.joint_key not in lacking]
        if len(kept) == len(plain):
            return cls(table, task, plan, reference, [])
        samples = [table.samples[index] for index in kept]
        answers = {label: [column[index] for index in kept] for label, column in table.answers.items()}
        selected = ScoreTable(
            samples=samples,
            answers=answers,
            scores={
                label: score_texts(task, samples, [each.text for each in column]) for label, column in answers.items()
            },
            missing=table.missing,
        )
        dropped = sorted({*range(len(plain))} - {*kept})
        left_out = [table.samples[index].question.scope for index in dropped]
        return cls(selected, task, plan, reference, left_out)

    @property
    def missing_reason(self) -> str | None:
        """The reason why there is no control, None if there is one."""
        if self.table.samples:
            return None
        if not self.plan.yes_scores:
            return (
                "plain decoding has no log-probabilities of yes and no: they were turned off (--no-logprobs), or the "
                "run is of an earlier version. A run in a new folder gets them."
            )
        return (
            "no answer of plain decoding has log-probabilities of yes or no: the server sent none, or the answers were "
            "stored without them. A run in a new folder asks again."
        )

    @cached_property
    def scores(self) -> Floats:
        """The score of each sample, shape [samples]."""
        found = [each.yes_score and each.yes_score.value for each in self.table.answers[self.reference]]
        return np.array(found, float)

    @cached_property
    def constant_scores(self) -> tuple[list[Score], list[Score]]:
        """The scores of the answers yes and no to each sample."""
        samples = self.table.samples
        yes, no = (score_texts(self.task, samples, [text] * len(samples)) for text in ("Yes", "No"))
        return yes, no

    @cached_property
    def is_grouped(self) -> bool:
        """Whether questions are scored together, so that expected counts are not sums over questions."""
        return any(sample.question.group is not None for sample in self.table.samples)

    def list_yes(self, label: str) -> NDArray[np.bool_]:
        """Return whether the parser of the task reads each answer of an arm as yes, shape [samples]."""
        return np.array([score.detail.get("parsed") == "yes" for score in self.table.scores[label]])

    def score_shares(self, shares: Floats) -> list[Score]:
        """Compute the expected scores of answers that are yes with a probability, for questions scored alone."""
        return [_mix(yes, no, float(share)) for yes, no, share in zip(*self.constant_scores, shares, strict=True)]

    def score_decisions(self, is_yes: NDArray[np.bool_]) -> list[Score]:
        """Score answers that are yes or no."""
        if self.is_grouped:
            return score_texts(self.task, self.table.samples, ["Yes" if each else "No" for each in is_yes])
        return [yes if each else no for yes, no, each in zip(*self.constant_scores, is_yes, strict=True)]

    def match_thresholds(
        self, kind: ThresholdKind, match: Callable[[list[int]], MatchedThreshold]
    ) -> tuple[Floats, dict[str | None, float]]:
        """Match a threshold in each scope, or one in all.

        Args:
            kind: One threshold for each scope, or one for all.
            match: Function of the indices of the samples that share a threshold.

        Returns:
            The share of yes of each sample, shape [samples], and the constants that move the thresholds to 0: one of
            each scope by its name, or one under None.
        """
        shares = np.zeros(len(self.scores))
        added: dict[str | None, float] = {}
        for scope in self.table.scopes if kind == "scope" else [None]:
            indices = self.table.find_indices_in(scope)
            threshold, shares[indices] = match(indices)
            added[scope] = -threshold
        return shares, added

    def list_ids(self) -> list[str]:
        """List an id of each sample, for the hash that settles ties."""
        several = len(self.table.seeds) > 1
        return [f"{each.question.id}|{each.seed}" if several else each.question.id for each in self.table.samples]


def _mix(yes: Score, no: Score, share: float) -> Score:
    names = yes.counts.keys() | no.counts.keys()
    return Score({name: share * yes.counts.get(name, 0) + (1 - share) * no.counts.get(name, 0) for name in names})


@dataclass(frozen=True)
class MatchedColumns:
    """Plain decoding at the thresholds that give the yes ratio of an arm.

    Attributes:
        expected: Scores in which questions that tie at a threshold share the places that are left.
        settled: Scores in which a hash decides them, for McNemar's test.
        added: The constant of each scope by its name, or of all scopes under None.
    """

    expected: list[Score]
    settled: list[Score]
    added: dict[str | None, float]


def match_columns(samples: ScoredSamples, label: str, kind: ThresholdKind) -> MatchedColumns:
    """Match the thresholds of plain decoding to the answers of an arm.

    Args:
        samples: The samples.
        label: Label of the arm.
        kind: One threshold for each scope, or one for all.

    Returns:
        The scores of plain decoding at these thresholds.
    """
    is_yes, ids = samples.list_yes(label), samples.list_ids()
    settled = np.zeros(len(ids), bool)

    def match(indices: list[int]) -> MatchedThreshold:
        count = int(is_yes[indices].sum())
        matched = match_yes_count(samples.scores[indices], count)
        settled[indices] = settle_ties(matched.shares, [ids[index] for index in indices], count)
        return matched

    shares, added = samples.match_thresholds(kind, match)
    decided = samples.score_decisions(settled)
    expected = decided if samples.is_grouped else samples.score_shares(shares)
    return MatchedColumns(expected, decided, added)


@dataclass(frozen=True)
class SampledColumns:
    """Sampled plain decoding under the cut of a control, before and after a constant is added to the score.

    Attributes:
        control: Label of the control, None without a cut.
        at_zero: Expected scores without the constant.
        moved: Expected scores with it.
        added: The constant of each scope by its name, or of all scopes under None.
    """

    control: str | None
    at_zero: list[Score]
    moved: list[Score]
    added: dict[str | None, float]


def build_sampled_columns(samples: ScoredSamples, arm: Arm, kind: ThresholdKind) -> SampledColumns:
    """Model the answers of sampled plain decoding to which a constant gives the change of the yes ratio of an arm.

    Args:
        samples: The samples.
        arm: The arm.
        kind: One constant for each scope, or one for all.

    Returns:
        The expected scores.
    """
    sampling = samples.plan.sampling
    control = next((each for each in samples.plan.arms if each.label in arm.controls and _is_cut(each)), None)
    beta = control.full_spec.parameters["truncate"]["beta"] if control else 0.0
    assert isinstance(beta, int | float)
    decoding = SampledDecoding(sampling.temperature, beta, sampling.top_p)
    change = samples.list_yes(arm.label) * 1.0 - samples.list_yes(control.label if control else samples.reference)
    at_zero = decoding.compute_yes_shares(samples.scores)

    def match(indices: list[int]) -> MatchedThreshold:
        count = float(at_zero[indices].sum() + change[indices].sum())
        return decoding.match_yes_count(samples.scores[indices], count)

    moved, added = samples.match_thresholds(kind, match)
    return SampledColumns(
        control.label if control else None, samples.score_shares(at_zero), samples.score_shares(moved), added
    )


def _is_cut(arm: Arm) -> bool:
    return arm.spec.stack == ("truncate",)


def measure_bias(samples: ScoredSamples, scopes: Sequence[str | None]) -> list[BiasResult | None]:
    """Measure plain decoding at matched thresholds in every scope.

    Args:
        samples: The samples.
        scopes: The scopes; None is all scopes together.

    Returns:
        One result for each scope, None for a scope without a sample.
    """
    arms = [arm for arm in samples.plan.arms if arm.label != samples.reference]
    at_zero = samples.score_decisions(samples.scores > 0)
    kinds = KINDS if len(samples.table.scopes) > 1 else KINDS[:1]
    matched = {(arm.label, kind): match_columns(samples, arm.label, kind) for arm in arms for kind in kinds}
    sampled = {
        (arm.label, kind): build_sampled_columns(samples, arm, kind)
        for arm in arms
        for kind in kinds
        if arm.requested and not samples.plan.sampling.greedy
    }
    present = {None, *samples.table.scopes} if samples.table.samples else set()
    return [
        BiasResult(
            answers=len(samples.table.find_indices_in(scope)),
            left_out=sum(scope in {None, each} for each in samples.left_out),
            bounded=_count_bounded(samples, scope),
            unlike_score=_count_unlike_score(samples, scope),
            auroc=_measure_auroc(samples, scope),
            controls=[
                _compare_control(samples, label, scope, kind, at_zero, columns)
                for (label, kind), columns in matched.items()
            ],
            splits=[
                _split_gain(samples, label, scope, columns)
                for (label, kind), columns in sampled.items()
                if (kind == "all") == (scope is None)
            ],
        )
        if scope in present
        else None
        for scope in scopes
    ]


def _count_bounded(samples: ScoredSamples, scope: str | None) -> int:
    answers = samples.table.answers[samples.reference]
    scores = [answers[index].yes_score for index in samples.table.find_indices_in(scope)]
    return sum(each is not None and each.kind != "exact" for each in scores)


def _count_unlike_score(samples: ScoredSamples, scope: str | None) -> int | None:
    if not samples.plan.sampling.greedy:
        return None
    differs = samples.list_yes(samples.reference) != (samples.scores > 0)
    return int(differs[samples.table.find_indices_in(scope)].sum())


def _measure_auroc(samples: ScoredSamples, scope: str | None) -> Estimate:
    indices = samples.table.find_indices_in(scope)
    questions = [samples.table.samples[index].question for index in indices]
    numbers = {image: number for number, image in enumerate(samples.table.list_clusters(indices))}
    images = np.array([numbers[question.cluster] for question in questions])
    is_yes = np.array([question.truth["label"] == "yes" for question in questions])
    draws = _build_comparison(samples, scope, {}, CONTROL_METRICS).bootstrap.weights
    weights = np.concatenate([np.ones((1, len(numbers))), draws])
    areas = weighted_auroc(samples.scores[indices], is_yes, weights, images)
    return Estimate.from_interval(percentile_intervals(areas[:1], areas[1:, None])[0])


def _build_comparison(
    samples: ScoredSamples, scope: str | None, columns: dict[str, list[Score]], metric_names: frozenset[str]
) -> Comparison:
    table = replace(samples.table, scores=columns)
    return Comparison(table, samples.task, scope, samples.plan.arms, samples.reference, metric_names)


def _compare_control(
    samples: ScoredSamples,
    label: str,
    scope: str | None,
    kind: ThresholdKind,
    at_zero: list[Score],
    matched: MatchedColumns,
) -> BiasControl:
    columns = {
        label: samples.table.scores[label],
        AT_ZERO: at_zero,
        "matched threshold": matched.expected,
        "settled threshold": matched.settled,
    }
    comparison = _build_comparison(samples, scope, columns, CONTROL_METRICS)
    beyond = comparison.compare(label, "matched threshold", "settled threshold")
    values = {name: comparison.ratios.compute(counts.sum(0)) for name, counts in comparison.counts.items()}
    metrics: dict[str, BiasMetric] = {}
    for column, metric in enumerate(comparison.metrics):
        beyond[metric.name].verdict = decide_verdict(metric, beyond[metric.name])
        plain, control, strategy = (float(values[name][column]) for name in (AT_ZERO, "matched threshold", label))
        metrics[metric.name] = BiasMetric(
            plain=plain,
            control=control,
            strategy=strategy,
            gain=strategy - plain,
            bias=control - plain,
            beyond=beyond[metric.name],
        )
    added = matched.added.get(scope if kind == "scope" else None)
    return BiasControl(strategy=label, threshold=kind, added=added, metrics=metrics)


def _split_gain(samples: ScoredSamples, label: str, scope: str | None, sampled: SampledColumns) -> GainSplit:
    reference, control = samples.reference, sampled.control
    columns = {name: samples.table.scores[name] for name in (label, reference, *([control] if control else []))}
    columns |= {"at zero": sampled.at_zero, "with constant": sampled.moved}
    comparison = _build_comparison(samples, scope, columns, SPLIT_METRICS)
    weights = np.concatenate([np.ones((1, comparison.bootstrap.weights.shape[1])), comparison.bootstrap.weights])
    # Observed values in the first row, those of the resamples below: [1 + resamples, metrics].
    values = {name: comparison.ratios.compute(weights @ counts) for name, counts in comparison.counts.items()}
    gain, bias = values[label] - values[reference], values["with constant"] - values["at zero"]
    cut = values[control] - values[reference] if control else np.zeros_like(gain)
    parts = {"gain": gain, "cut": cut, "bias": bias, "rest": gain - cut - bias}
    intervals = {name: percentile_intervals(rows[0], rows[1:]) for name, rows in parts.items()}
    metrics = {
        metric.name: SplitMetric(
            plain=float(values[reference][0, column]),
            strategy=float(values[label][0, column]),
            gain=Estimate.from_interval(intervals["gain"][column]),
            cut=Estimate.from_interval(intervals["cut"][column]) if control else None,
            bias=Estimate.from_interval(intervals["bias"][column]),
            rest=Estimate.from_interval(intervals["rest"][column]),
        )
        for column, metric in enumerate(comparison.metrics)
    }
    return GainSplit(strategy=label, control=control, added=sampled.added.get(scope), metrics=metrics)
