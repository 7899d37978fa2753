"""All scores of a run: the same questions and seeds for every arm, in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.core.answer_store import StoredAnswer
from eval.core.metrics import Floats, Metric
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score
from eval.runs.plan import Arm, RunPlan


@dataclass(frozen=True)
class Sample:
    """A question under a seed of the run."""

    question: BenchmarkQuestion
    seed: int | None

    @property
    def joint_key(self) -> tuple[str, str, int | None]:
        """A key that the samples which are scored together share: those of a group under a seed, or the one."""
        question = self.question
        name = f"id {question.id}" if question.group is None else f"group {question.group}"
        return question.scope, name, self.seed


@dataclass(frozen=True)
class ScoreTable:
    """Answers and scores of all arms.

    Attributes:
        samples: Samples that every arm has answered.
        answers: Answers by label, in the order of the samples.
        scores: Scores by label, in the order of the samples. Also those of the constant answers of the task, by name.
        missing: Number of samples without an answer, or without a verdict that the task needs, by label.
    """

    samples: list[Sample]
    answers: Mapping[str, list[StoredAnswer]]
    scores: Mapping[str, list[Score]]
    missing: Mapping[str, int]

    @property
    def scopes(self) -> list[str]:
        """The scopes of the questions, in order."""
        return list(dict.fromkeys(sample.question.scope for sample in self.samples))

    @cached_property
    def seeds(self) -> list[int | None]:
        """The seeds of the run, in order."""
        return list(dict.fromkeys(sample.seed for sample in self.samples))

    def find_indices_in(self, scope: str | None) -> list[int]:
        """Return the indices of the samples of a scope; None is all scopes."""
        return [index for index, sample in enumerate(self.samples) if scope in {None, sample.question.scope}]

    def find_unique_indices(self, indices: Sequence[int]) -> list[int]:
        """Keep the first of equal requests. Splits share questions, which would count several times in a test."""
        unique = {(self._request_of(index), self.samples[index].seed): index for index in reversed(indices)}
        return sorted(unique.values())

    def _request_of(self, index: int) -> tuple[Path | None, str]:
        question = self.samples[index].question
        return question.image, question.prompt

    def count_images(self, indices: Sequence[int]) -> int:
        """Count the distinct images of samples."""
        return len({image for index in indices if (image := self.samples[index].question.image)})

    def list_clusters(self, indices: Sequence[int]) -> list[str]:
        """List the distinct clusters of samples, sorted."""
        return sorted({self.samples[index].question.cluster for index in indices})

    def sum_counts(self, label: str, indices: Sequence[int], names: Sequence[str]) -> Floats:
        """Sum counts by cluster.

        Args:
            label: Label of an arm.
            indices: Indices of samples.
            names: Names of counts.

        Returns:
            Shape [clusters, counts], in the order of `list_clusters` and `names`.
        """
        rows = {name: row for row, name in enumerate(self.list_clusters(indices))}
        sums = np.zeros((len(rows), len(names)))
        for index in indices:
            counts = self.scores[label][index].counts
            sums[rows[self.samples[index].question.cluster]] += [counts.get(name, 0.0) for name in names]
        return sums

    def list_outcomes(self, label: str, indices: Sequence[int], metric: Metric) -> NDArray[np.bool_]:
        """Return the outcome of each sample for a metric that is per question, shape [samples]."""
        return np.array([metric.is_positive(self.scores[label][index].counts) for index in indices])


def build_score_table(
    plan: RunPlan, task: BenchmarkTask, questions: list[BenchmarkQuestion], answers: Mapping[str, StoredAnswer]
) -> ScoreTable:
    """Look up and score the answers of all arms.

    Args:
        plan: The plan.
        task: The task.
        questions: The questions of the plan.
        answers: Answers by key.

    Returns:
        The table, with the samples that every arm has answered.
    """
    samples = [Sample(question, seed) for seed in plan.effective_seeds for question in questions]

    def find_answer(arm: Arm, sample: Sample) -> StoredAnswer | None:
        answer = answers.get(plan.build_request(arm, sample.question, sample.seed).key)
        return answer if answer and task.has_verdict(sample.question, answer.text) else None

    found = {arm.label: [find_answer(arm, sample) for sample in samples] for arm in plan.arms}
    common = [index for index in range(len(samples)) if all(column[index] for column in found.values())]
    common_answers = {
        label: [answer for index in common if (answer := column[index])] for label, column in found.items()
    }
    common_samples = [samples[index] for index in common]
    texts = {label: [answer.text for answer in column] for label, column in common_answers.items()}
    texts |= {name: [answer] * len(common) for name, answer in task.constant_answers.items()}
    return ScoreTable(
        samples=common_samples,
        answers=common_answers,
        scores={label: score_texts(task, common_samples, column) for label, column in texts.items()},
        missing={label: sum(answer is None for answer in column) for label, column in found.items()},
    )


def score_texts(task: BenchmarkTask, samples: Sequence[Sample], texts: Sequence[str]) -> list[Score]:
    """Score answers seed by seed: questions that are scored together must have the same seed.

    Args:
        task: The task.
        samples: The samples, seed by seed.
        texts: The answers, in the same order.

    Returns:
        One score for each answer.
    """
    scores: list[Score] = []
    for seed in dict.fromkeys(sample.seed for sample in samples):
        indices = [index for index, sample in enumerate(samples) if sample.seed == seed]
        scores += task.score_answers(
            [samples[index].question for index in indices], [texts[index] for index in indices]
        )
    return scores
