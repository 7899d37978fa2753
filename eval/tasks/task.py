"""A benchmark: what to ask, and what each answer is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from eval.metrics import Metric
from eval.question import Mark, Question
from eval.results import Table


class Task(Protocol):
    name: str
    title: str
    max_tokens: int
    metrics: tuple[Metric, ...]
    whole: str | None  # what all scopes together are called, where that is reported too
    cautions: tuple[tuple[str, str], ...]  # (metric, metric): a fall of both is no gain

    def questions(self) -> list[Question]:
        """Raises: InputError: the data cannot be used."""

    def marks(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Mark]:
        """One for each; where questions belong together, the last of them carries what they are worth together."""

    def files(self) -> list[Path]:
        """All that questions and marks are made from, pictures aside."""

    def notes(self, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
        """What else a reader should know about these answers."""

    def check(self, questions: Sequence[Question]) -> None:
        """Raises: EvaluationError: answers to these could not be marked."""
        return

    def tables(self, questions: Sequence[Question], answers: Mapping[str, Sequence[str]]) -> list[Table]:
        """What is shown beside the comparison, from every strategy's answers to these questions."""
        return []
