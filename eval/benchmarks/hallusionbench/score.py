"""HallusionBench (arXiv:2310.14566) without a judge model: yes and no are parsed from the answers.

In the official script GPT-4 labels each answer correct, incorrect or unclear. Here an answer is unclear if it has none
or both of the words yes and no (the rule of VLMEvalKit). An unclear answer is wrong, except to a question about a
visual supplement that is sent without the image. Everything else follows the official script.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks.pope.parsers import PARSERS
from eval.core.jsonl import JsonRecord, read_records

PARSER = PARSERS["vlmevalkit"]


@dataclass(frozen=True)
class HallusionQuestion:
    """A question about a figure.

    Attributes:
        category: `VD` (visual dependent) or `VS` (visual supplement).
        set: Category, subcategory and id of the set, whose figures and questions are scored together.
        figure_id: Id of the figure in the set. Figure 0 is the original image, or none.
        question_id: Id of the question in the set.
        visual_input: 0 without an image, 1 with an unedited one, 2 with an edited one. A visual supplement has
            unedited images beyond figure 0.
        truth: The correct answer, `yes` or `no`.
    """

    category: str
    set: tuple[str, str, str]
    figure_id: str
    question_id: str
    visual_input: str
    truth: str

    @property
    def figure(self) -> tuple[str, ...]:
        """Set and id of the figure."""
        return (*self.set, self.figure_id)

    @property
    def question(self) -> tuple[str, ...]:
        """Set and id of the question."""
        return (*self.set, self.question_id)

    @property
    def is_unsupplemented(self) -> bool:
        """Whether the question lacks its visual supplement. fAcc leaves it out, and an unclear answer is correct."""
        return self.category == "VS" and self.figure_id == "0"

    @property
    def is_edited(self) -> bool:
        """Whether the image is edited."""
        return self.visual_input == "2"


@dataclass(frozen=True)
class HallusionAnswer:
    """A parsed answer: `yes`, `no`, or None for an unclear one."""

    question: HallusionQuestion
    parsed: str | None

    @property
    def is_correct(self) -> bool:
        """Whether the answer counts as correct."""
        return self.parsed == self.question.truth or (self.parsed is None and self.question.is_unsupplemented)


def parse_question(record: JsonRecord) -> HallusionQuestion:
    """Parse a row of the official array.

    A missing field raises `InputError`.

    Args:
        record: The row.

    Returns:
        The question.

    Raises:
        InputError: A field has an invalid value.
    """  # noqa: DOC502 - `build_error` builds it
    category, gt_answer = record.get_string("category"), str(record.get_identifier("gt_answer"))
    if category not in ("VD", "VS"):
        raise record.build_error(f"is {category!r}, not VD or VS", "category")
    if gt_answer not in ("0", "1"):
        raise record.build_error(f"is {gt_answer!r}, not 0 or 1", "gt_answer")
    visual_input = str(record.get_identifier("visual_input"))
    if visual_input not in ("0", "1", "2"):
        raise record.build_error(f"is {visual_input!r}, not 0, 1 or 2", "visual_input")
    return HallusionQuestion(
        category=category,
        set=(category, record.get_string("subcategory"), str(record.get_identifier("set_id"))),
        figure_id=str(record.get_identifier("figure_id")),
        question_id=str(record.get_identifier("question_id")),
        visual_input=visual_input,
        truth="yes" if gt_answer == "1" else "no",
    )


def read_questions(file: Path) -> list[tuple[JsonRecord, HallusionQuestion]]:
    """Read the official array. A missing field or a field with an invalid value raises `InputError`.

    Args:
        file: The file.

    Returns:
        Rows and their questions.

    Raises:
        InputError: Two rows have the same figure and question.
    """  # noqa: DOC502 - `build_error` builds it
    questions = []
    keys = set()
    for record in read_records(file):
        question = parse_question(record)
        if (question.figure, question.question) in keys:
            raise record.build_error("repeats a question about the same figure", "question_id")
        keys.add((question.figure, question.question))
        questions.append((record, question))
    return questions


def read_answers(file: Path) -> list[HallusionAnswer]:
    """Read the official array with `model_prediction` in every row. Invalid rows raise `InputError`."""
    return [
        HallusionAnswer(question, PARSER.parse(record.get_string("model_prediction"), ""))
        for record, question in read_questions(file)
    ]


def replace_answers(answers: Iterable[HallusionAnswer], constant: str) -> list[HallusionAnswer]:
    """Replace all answers by `yes` or `no`."""
    return [HallusionAnswer(each.question, constant) for each in answers]


def group_answers(answers: Iterable[HallusionAnswer]) -> Mapping[str, Mapping[Hashable, list[HallusionAnswer]]]:
    """Group the answers that count together.

    Args:
        answers: The answers.

    Returns:
        The groups of each official number. `fAcc`: the questions of a figure. `qAcc`: a question about all of its
        figures. `easy` and `hard`: likewise, about figures that are not edited and about edited ones.
    """
    groups: dict[str, defaultdict[Hashable, list[HallusionAnswer]]] = {
        name: defaultdict(list) for name in ("fAcc", "qAcc", "easy", "hard")
    }
    for answer in answers:
        question = answer.question
        if not question.is_unsupplemented:
            groups["fAcc"][question.figure].append(answer)
        groups["qAcc"][question.question].append(answer)
        groups["hard" if question.is_edited else "easy"][question.question].append(answer)
    return groups


def compute_scores(answers: Iterable[HallusionAnswer]) -> dict[str, object]:
    """Compute the official numbers.

    Args:
        answers: The answers.

    Returns:
        `aAcc`: accuracy over questions. `fAcc`, `qAcc`, `easy` and `hard`: share of groups with every answer correct.
        All between 0 and 1, None for an empty group.
    """
    answers = list(answers)
    scores: dict[str, Any] = {"aAcc": _mean([answer.is_correct for answer in answers])}
    for name, groups in group_answers(answers).items():
        scores[name] = _mean([all(each.is_correct for each in group) for group in groups.values()])
    return scores | {"n": len(answers), "unparsed": sum(answer.parsed is None for answer in answers)}


def _mean(correct: list[bool]) -> float | None:
    return sum(correct) / len(correct) if correct else None
