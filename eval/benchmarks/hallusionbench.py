"""HallusionBench (arXiv:2310.14566) without a judge model: yes and no are parsed from the answers.

In the official script GPT-4 labels each answer correct, incorrect or unclear. Here an answer is unclear if it has none
or both of the words yes and no (the rule of VLMEvalKit). An unclear answer is wrong, except to a question about a
visual supplement that is sent without the image. Everything else follows the official script.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from eval.benchmarks.pope.parsers import PARSERS
from eval.core.jsonl import JsonRecord, read_records


@dataclass(frozen=True)
class HallusionAnswer:
    """One parsed answer.

    Attributes:
        category: `VD` (visual dependent) or `VS` (visual supplement).
        figure: Category, subcategory, set and id of the figure.
        question: Category, subcategory, set and id of the question.
        original: Whether the figure is figure 0: the original image, or none.
        edited: Whether the question is about an edited image (`visual_input` 2). Other questions are about an
            unedited image (1), or are asked without one (0). A visual supplement has unedited images beyond figure 0.
        truth: The correct answer, `yes` or `no`.
        correct: Whether the answer is correct.
        unclear: Whether the answer is neither yes nor no.
    """

    category: str
    figure: tuple[str, ...]
    question: tuple[str, ...]
    original: bool
    edited: bool
    truth: str
    correct: bool
    unclear: bool


def read_answers(file: Path) -> list[HallusionAnswer]:
    """Read the official array with `model_prediction` in every row.

    A missing field or a field with an invalid value raises `InputError`.

    Args:
        file: The file.

    Returns:
        The answers.
    """
    answers = []
    keys = set()
    for record in read_records(file):
        answer = _parse_record(record)
        if (answer.figure, answer.question) in keys:
            raise record.build_error("repeats a question about the same figure", "question_id")
        keys.add((answer.figure, answer.question))
        answers.append(answer)
    return answers


def _parse_record(record: JsonRecord) -> HallusionAnswer:
    category, gt_answer = record.get_string("category"), str(record.get_identifier("gt_answer"))
    if category not in ("VD", "VS"):
        raise record.build_error(f"is {category!r}, not VD or VS", "category")
    if gt_answer not in ("0", "1"):
        raise record.build_error(f"is {gt_answer!r}, not 0 or 1", "gt_answer")
    visual_input = str(record.get_identifier("visual_input"))
    if visual_input not in ("0", "1", "2"):
        raise record.build_error(f"is {visual_input!r}, not 0, 1 or 2", "visual_input")
    group = (category, record.get_string("subcategory"), str(record.get_identifier("set_id")))
    figure, question = str(record.get_identifier("figure_id")), str(record.get_identifier("question_id"))
    parsed = PARSERS["vlmevalkit"].parse(record.get_string("model_prediction"), "")
    truth = "yes" if gt_answer == "1" else "no"
    correct = parsed == truth or (parsed is None and category == "VS" and figure == "0")
    return HallusionAnswer(
        category=category,
        figure=(*group, figure),
        question=(*group, question),
        original=figure == "0",
        edited=visual_input == "2",
        truth=truth,
        correct=correct,
        unclear=parsed is None,
    )


def replace_answers(answers: Iterable[HallusionAnswer], constant: str) -> list[HallusionAnswer]:
    """Replace all answers by `yes` or `no`."""
    return [replace(each, correct=each.truth == constant, unclear=False) for each in answers]


def compute_scores(answers: Iterable[HallusionAnswer]) -> dict[str, object]:
    """Compute the official numbers.

    Args:
        answers: The answers.

    Returns:
        `aAcc`: accuracy over questions. `fAcc`: share of figures with every question correct. `qAcc`: share of
        questions that are correct on all of their figures. `easy` and `hard`: qAcc on figures that are not edited and
        on edited ones. All between 0 and 1, None for an empty group.
    """
    answers = list(answers)
    return {
        "aAcc": _mean([answer.correct for answer in answers]),
        "fAcc": _group_accuracy(
            (answer.figure, answer) for answer in answers if answer.category == "VD" or not answer.original
        ),
        "qAcc": _group_accuracy((answer.question, answer) for answer in answers),
        "easy": _group_accuracy((answer.question, answer) for answer in answers if not answer.edited),
        "hard": _group_accuracy((answer.question, answer) for answer in answers if answer.edited),
        "n": len(answers),
        "unparsed": sum(answer.unclear for answer in answers),
    }


def _group_accuracy(keyed: Iterable[tuple[Hashable, HallusionAnswer]]) -> float | None:
    """Compute the share of groups with every answer correct."""
    groups: defaultdict[Hashable, list[bool]] = defaultdict(list)
    for key, answer in keyed:
        groups[key].append(answer.correct)
    return _mean([all(group) for group in groups.values()])


def _mean(correct: list[bool]) -> float | None:
    return sum(correct) / len(correct) if correct else None
