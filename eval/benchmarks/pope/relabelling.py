"""Labels of other authors for POPE's questions, such as those of RePOPE (arXiv:2504.15707).

A file of labels has the form of a question file and lacks the questions that its authors find ambiguous. It is joined
by image and object: the ids of an older random file of POPE lead to other questions, and copies of POPE differ in the
spelling of their questions ("an apple in the imange").
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks.pope.parsers import AnswerParser
from eval.benchmarks.pope.score import LabelledAnswers, PopeScore, read_label
from eval.core.jsonl import JsonRecord, read_records
from eval.errors import InputError

OBJECT = re.compile(r"\ban? (.+) in the iman?ge\b", re.IGNORECASE)
LISTED = 3  # unanswered questions that an error names

QuestionKey = tuple[str, str]
"""File name of the image, and the object or, in a question of another form, its text."""


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
    """
    new_labels: dict[QuestionKey, str] = {}
    new_keys: dict[str, QuestionKey] = {}
    for record in read_records(labels):
        key, label = _read_key(record), read_label(record, parsers)
        if new_labels.setdefault(key, label) != label:
            raise record.build_error(f"is {label!r}, but the same question has another label before", "label")
        if (question_id := record.value.get("question_id")) is not None:
            new_keys[str(question_id)] = key
    records = read_records(questions)
    keys = [_read_key(record) for record in records]
    asked = set(keys)
    if asked.isdisjoint(new_labels):
        raise InputError(f"has no label for a question of {questions}", labels)
    unanswered = [key for key in new_labels if key not in asked]
    if unanswered and not allow_missing:
        names = "; ".join(f"{image}: {thing}" for image, thing in unanswered[:LISTED])
        raise InputError(
            f"has {len(unanswered)} labels of questions that {questions} lacks ({names}). "
            "--allow-missing scores the others",
            labels,
        )
    kept = [index for index, key in enumerate(keys) if key in new_labels]
    ids = [str(record.value.get("question_id")) for record in records]
    return RelabelledAnswers(
        pairs=LabelledAnswers(
            [new_labels[keys[index]] for index in kept], [pairs.answers[index] for index in kept], pairs.warnings
        ),
        changes=dict(
            Counter(f"{old}->{new_labels.get(key, 'dropped')}" for key, old in zip(keys, pairs.labels, strict=True))
        ),
        unanswered=len(unanswered),
        moved_ids=sum(new_keys.get(id, key) != key for id, key in zip(ids, keys, strict=True)),
    )


def _read_key(question: JsonRecord) -> QuestionKey:
    text = question.get_string("text")
    named = OBJECT.search(text)
    return Path(question.get_string("image")).name, named[1] if named else text


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
