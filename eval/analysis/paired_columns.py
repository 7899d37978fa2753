"""Paired comparison of columns of one score table, such as the same strategy in two runs."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from eval.analysis.comparison import Comparison, adjust_p_values, decide_verdicts
from eval.analysis.score_table import ScoreTable
from eval.core.results import Difference, Estimate, MetricColumn
from eval.core.task import BenchmarkTask


class ColumnPair(BaseModel):
    """A column and the one that it is compared with.

    Attributes:
        first: Label of the column that is subtracted.
        second: Label of the other column.
    """

    first: str
    second: str


class PairResult(ColumnPair):
    """The comparison of two columns in one scope.

    Attributes:
        different_answers: Answers whose texts differ.
        first_metrics: The metrics of the first column.
        second_metrics: The metrics of the second column.
        differences: Second minus first, with intervals and tests.
    """

    different_answers: int
    first_metrics: dict[str, Estimate]
    second_metrics: dict[str, Estimate]
    differences: dict[str, Difference]


class ScopePairs(BaseModel):
    """All pairs in one scope of the task.

    Attributes:
        scope: Name of the scope.
        answers: Answers of each column.
        images: Distinct images.
        pairs: The pairs.
    """

    scope: str
    answers: int
    images: int
    pairs: list[PairResult]


class RunComparison(BaseModel):
    """The comparison of two finished runs.

    Attributes:
        task: Name of the task.
        title: Title of the task.
        cluster: Name of the things that intervals resample, in the singular.
        first: Folder of the first run.
        second: Folder of the second run.
        columns: The metrics.
        scopes: The scopes. The last one has all of them together, if the task reports that.
        seeds: Number of answers to each question that are compared.
        unequal: Settings that differ, as `name: value in the first run; value in the second run`.
        not_shared: Questions, strategies and answers that only one run has.
    """

    task: str
    title: str
    cluster: str
    first: str
    second: str
    columns: list[MetricColumn]
    scopes: list[ScopePairs]
    seeds: int
    unequal: list[str]
    not_shared: list[str]


def compare_columns(table: ScoreTable, task: BenchmarkTask, pairs: Sequence[ColumnPair]) -> list[ScopePairs]:
    """Compare pairs of columns in every scope, with the intervals and tests of the report of a run.

    Args:
        table: The scores of all columns.
        task: The task.
        pairs: The pairs. P-values are adjusted after Holm over them.

    Returns:
        One result for each scope.
    """
    scopes: list[str | None] = [*table.scopes]
    if task.overall_scope and len(scopes) > 1:
        scopes.append(None)
    return [_compare_in_scope(Comparison(table, task, scope, (), ""), pairs) for scope in scopes]


def _compare_in_scope(comparison: Comparison, pairs: Sequence[ColumnPair]) -> ScopePairs:
    results = [
        PairResult(
            first=pair.first,
            second=pair.second,
            different_answers=_count_different_answers(comparison, pair),
            first_metrics=comparison.estimate(pair.first),
            second_metrics=comparison.estimate(pair.second),
            differences=comparison.compare(pair.second, pair.first),
        )
        for pair in pairs
    ]
    differences = [result.differences for result in results]
    adjust_p_values(comparison.task.metrics, differences)
    decide_verdicts(comparison.task.metrics, differences)
    return ScopePairs(
        scope=comparison.scope or comparison.task.overall_scope or "all",
        answers=len(comparison.indices),
        images=comparison.table.count_images(comparison.indices),
        pairs=results,
    )


def _count_different_answers(comparison: Comparison, pair: ColumnPair) -> int:
    first, second = (comparison.table.answers[label] for label in (pair.first, pair.second))
    return sum(first[index].text != second[index].text for index in comparison.indices)
