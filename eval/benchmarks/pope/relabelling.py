"""Labels of other authors for POPE's questions, such as those of RePOPE (arXiv:2504.15707).

A file of labels has the form of a question file and lacks the questions that its authors find ambiguous. It is joined
by image and object: the ids of an older random file of POPE lead to other questions, and copies of POPE differ in the
spelling of their questions ("an apple in the imange").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval.benchmarks.pope.parsers import AnswerParser
from eval.benchmarks.pope.score import LabelledAnswers, PopeScore, read_label
from eval.core.jsonl import JsonRecord, read_records
from eval.errors import InputError

OBJECT = re.compile(r"\ban? (.+) in the iman?ge\b", re.IGNORECASE)
LISTED = 3  # unanswered questions that an error names

QuestionKey = tuple[str, str]
"""File name of the image without suffix, and the object or, in a question of another form, its text."""


class AskedQuestion(NamedTuple):
    """A question that was asked: its key, its label, and its id in the question file."""

    key: QuestionKey
    label: str
    id: str


@dataclass(frozen=True)
class LabelJoin:
    """The labels of a file for questions that were asked.

    Attributes:
        labels: The new label of each question, None for a question that the file lacks.
        changes: Number of questions by old and new label, such as `yes->no` and `no->dropped`.
        unanswered: Number of labels whose question was not asked.
        moved_ids: Number of questions whose id is that of another question in the file.
    """

    labels: list[str | None]
    changes: dict[str, int]
    unanswered: int
    moved_ids: int

    @property
    def matched(self) -> int:
        """Number of questions that have a label."""
        return sum(label is not None for label in self.labels)


@dataclass(frozen=True)
class LabelFile:
    """A file of labels.

    Attributes:
        file: The file.
        labels: Label by question.
        keys_by_id: Question by `question_id`.
    """

    file: Path
    labels: dict[QuestionKey, str]
    keys_by_id: dict[str, QuestionKey]

    @classmethod
    def read(cls, file: Path, parsers: list[AnswerParser]) -> LabelFile:
        """Read a file in the form of a question file.

        Args:
            file: The file.
            parsers: Parsers that are going to be used.

        Returns:
            The labels.

        Raises:
            InputError: A label or a field is missing or invalid, or a question has two labels.
        """  # noqa: DOC502 - `build_error` builds it
        labels: dict[QuestionKey, str] = {}
        keys_by_id: dict[str, QuestionKey] = {}
        for record in read_records(file):
            key, label = _read_key(record), read_label(record, parsers)
            if labels.setdefault(key, label) != label:
                raise record.build_error(f"is {label!r}, but the same question has another label before", "label")
            if (question_id := record.value.get("question_id")) is not None:
                keys_by_id[str(question_id)] = key
        return cls(file, labels, keys_by_id)

    def join(self, questions: Sequence[AskedQuestion], source: str, *, allow_missing: bool) -> LabelJoin:
        """Find the labels of questions.

        Args:
            questions: The questions.
            source: Their origin, for errors.
            allow_missing: Accept labels of questions that were not asked.

        Returns:
            The labels and the counts of the join.

        Raises:
            InputError: No question has a label, or a label has no question.
        """
        asked = {question.key for question in questions}
        if asked.isdisjoint(self.labels):
            raise InputError(f"has no label for a question of {source}", self.file)
        unanswered = [key for key in self.labels if key not in asked]
        if unanswered and not allow_missing:
            names = "; ".join(f"{image}: {thing}" for image, thing in unanswered[:LISTED])
            raise InputError(
                f"has {len(unanswered)} labels of questions that {source} lacks ({names}). "
                "--allow-missing scores the others",
                self.file,
            )
        return LabelJoin(
            labels=[self.labels.get(question.key) for question in questions],
            changes=dict(Counter(f"{each.label}->{self.labels.get(each.key, 'dropped')}" for each in questions)),
            unanswered=len(unanswered),
            moved_ids=sum(self.keys_by_id.get(each.id, each.key) != each.key for each in questions),
        )


@dataclass(frozen=True)
class RelabelledAnswers:
    """The answers to the questions of a file of labels.

    Attributes:
        pairs: The new labels with the answers, in the order of the question file.
        changes: Number of questions by old and new label, such as `yes->no`. The new label of a question that the file
            of labels lacks is `dropped`.
        unanswered: Number of labels whose question the question file lacks.
        moved_ids: Number of questions whose `question_id` is that of another question in the file of labels.
    """

    pairs: LabelledAnswers
    changes: dict[str, int]
    unanswered: int
    moved_ids: int

    def as_json(self) -> dict[str, object]:
        """Return the counts of the join by name."""
        return {
            "matched": len(self.pairs.labels),
            "dropped": sum(count for change, count in self.changes.items() if change.endswith("->dropped")),
            "unanswered": self.unanswered,
            "moved_ids": self.moved_ids,
            "changes": self.changes,
        }


def relabel_answers(
    questions: Path, pairs: LabelledAnswers, labels: Path, parsers: list[AnswerParser], *, allow_missing: bool = False
) -> RelabelledAnswers:
    """Replace the labels of answered questions. Questions that the file of labels lacks are dropped.

    Args:
        questions: Question file of the answers.
        pairs: Its labels and the answers.
        labels: File of labels, in the form of a question file.
        parsers: Parsers that are going to be used.
        allow_missing: Accept labels of questions that the question file lacks.

    Returns:
        The answers with their new labels.

    Raises:
        InputError: A label or a field is missing or invalid, a question has two labels, no question has a label, or a
            label has no question.
    """  # noqa: DOC502 - `LabelFile` raises it
    records = read_records(questions)
    asked = [
        AskedQuestion(_read_key(record), label, str(record.value.get("question_id")))
        for record, label in zip(records, pairs.labels, strict=True)
    ]
    join = LabelFile.read(labels, parsers).join(asked, str(questions), allow_missing=allow_missing)
    kept = [index for index, label in enumerate(join.labels) if label is not None]
    return RelabelledAnswers(
        pairs=LabelledAnswers(
            [label for label in join.labels if label is not None],
            [pairs.answers[index] for index in kept],
            pairs.warnings,
        ),
        changes=join.changes,
        unanswered=join.unanswered,
        moved_ids=join.moved_ids,
    )


def build_key(image: str, text: str) -> QuestionKey:
    """Build the key of a question from its image and its text. Copies of POPE differ in the format of images."""
    named = OBJECT.search(text)
    return Path(image).stem, named[1] if named else text


def _read_key(question: JsonRecord) -> QuestionKey:
    return build_key(question.get_string("image"), question.get_string("text"))


def compute_balanced_rates(score: PopeScore) -> dict[str, float | None]:
    """Compute the rates that do not depend on the share of each label, which differs between files of labels.

    Args:
        score: The score.

    Returns:
        `specificity`, the recall of the label no, and `balanced_accuracy`, the mean of both recalls. Both are between 0
        and 1, None without answers to questions with a label.
    """
    specificity = score.tn / (score.tn + score.fp) if score.tn + score.fp else None
    balanced = None if specificity is None or score.recall is None else (score.recall + specificity) / 2
    return {"specificity": specificity, "balanced_accuracy": balanced}
