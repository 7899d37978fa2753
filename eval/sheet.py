"""All marks of a run side by side: for every strategy the same questions and seeds, in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eval.metrics import Floats, Metric
from eval.plan import Plan
from eval.question import Mark, Question
from eval.store import Answer
from eval.tasks.task import Task


@dataclass(frozen=True)
class Unit:
    """A question under a seed."""

    question: Question
    seed: int | None


@dataclass(frozen=True)
class Sheet:
    units: list[Unit]  # those that every strategy has answered
    answers: Mapping[str, list[Answer]]
    marks: Mapping[str, list[Mark]]
    missing: Mapping[str, int]

    @property
    def scopes(self) -> list[str]:
        return list(dict.fromkeys(unit.question.scope for unit in self.units))

    def within(self, scope: str | None) -> list[int]:
        return [at for at, unit in enumerate(self.units) if scope in {None, unit.question.scope}]

    def distinct(self, places: Sequence[int]) -> list[int]:
        """Without the questions that splits share, which would count several times in a test."""
        seen = {(self._asked(at), self.units[at].seed): at for at in reversed(places)}
        return sorted(seen.values())

    def _asked(self, at: int) -> tuple[str, str]:
        question = self.units[at].question
        return question.cluster, question.prompt

    def pictures(self, places: Sequence[int]) -> list[str]:
        return sorted({self.units[at].question.cluster for at in places})

    def counts(self, label: str, places: Sequence[int], names: Sequence[str]) -> Floats:
        """[pictures, counts]"""
        rows = {name: row for row, name in enumerate(self.pictures(places))}
        found = np.zeros((len(rows), len(names)))
        for at in places:
            counts = self.marks[label][at].counts
            found[rows[self.units[at].question.cluster]] += [counts.get(name, 0.0) for name in names]
        return found

    def outcomes(self, label: str, places: Sequence[int], metric: Metric) -> NDArray[np.bool_]:
        return np.array([metric.outcome(self.marks[label][at].counts) for at in places])

    @cached_property
    def seeds(self) -> list[int | None]:
        return list(dict.fromkeys(unit.seed for unit in self.units))


def sheet(plan: Plan, task: Task, questions: list[Question], answers: Mapping[str, Answer]) -> Sheet:
    units = [Unit(question, seed) for seed in plan.drawn_seeds for question in questions]
    found = {
        contender.label: [answers.get(plan.request(contender, unit.question, unit.seed).key) for unit in units]
        for contender in plan.contenders
    }
    common = [at for at in range(len(units)) if all(column[at] for column in found.values())]
    kept = {label: [answer for at in common if (answer := column[at])] for label, column in found.items()}
    shared = [units[at] for at in common]
    return Sheet(
        units=shared,
        answers=kept,
        marks={label: _marks(task, shared, column) for label, column in kept.items()},
        missing={label: sum(answer is None for answer in column) for label, column in found.items()},
    )


def _marks(task: Task, units: Sequence[Unit], answers: Sequence[Answer]) -> list[Mark]:
    """Seed by seed: questions that belong together are of one seed."""
    marks: list[Mark] = []
    for seed in dict.fromkeys(unit.seed for unit in units):
        places = [at for at, unit in enumerate(units) if unit.seed == seed]
        marks += task.marks([units[at].question for at in places], [answers[at].text for at in places])
    return marks
