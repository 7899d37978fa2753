"""HallusionBench (arXiv:2310.14566) without a judge: yes and no are read off the answers, the rest is official.

The official script lets GPT-4 call an answer correct, incorrect or unclear. Here an answer is unclear if it holds none
or both of the words yes and no (the rule of VLMEvalKit). An unclear answer is wrong, except to a question on a visual
supplement that is asked without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eval.inputs import Record, records
from eval.pope.parsers import PARSERS


@dataclass(frozen=True)
class Row:
    category: str
    figure: tuple[str, ...]
    question: tuple[str, ...]
    original: bool  # figure 0: the picture as it is, or none
    correct: bool
    unclear: bool


def rows(file: Path) -> list[Row]:
    """From the official array with `model_prediction` in every row.

    Raises:
        InputError: a field that is missing or has another value, or the same question on the same figure twice.
    """
    found = []
    seen = set()
    for record in records(file):
        row = _row(record)
        if (row.figure, row.question) in seen:
            raise record.error("asks the same question on the same figure again", "question_id")
        seen.add((row.figure, row.question))
        found.append(row)
    return found


def _row(record: Record) -> Row:
    category, truth = record.text("category"), str(record.identifier("gt_answer"))
    if category not in ("VD", "VS"):
        raise record.error(f"is {category!r}, not VD or VS", "category")
    if truth not in ("0", "1"):
        raise record.error(f"is {truth!r}, not 0 or 1", "gt_answer")
    group = (category, record.text("subcategory"), str(record.identifier("set_id")))
    figure, question = str(record.identifier("figure_id")), str(record.identifier("question_id"))
    read = PARSERS["vlmevalkit"].read(record.text("model_prediction"), "")
    correct = read == ("yes" if truth == "1" else "no") or (read is None and category == "VS" and figure == "0")
    return Row(category, (*group, figure), (*group, question), figure == "0", correct, read is None)


def score(found: Iterable[Row]) -> dict[str, object]:
    """aAcc: questions; fAcc: figures with every question right; qAcc: questions right on every figure of theirs.

    `easy` and `hard`: qAcc on the original figures, and on the others. All between 0 and 1, None where there is none.
    """
    found = list(found)
    return {
        "aAcc": _share([row.correct for row in found]),
        "fAcc": _together((row.figure, row) for row in found if row.category == "VD" or not row.original),
        "qAcc": _together((row.question, row) for row in found),
        "easy": _together((row.question, row) for row in found if row.original),
        "hard": _together((row.question, row) for row in found if not row.original),
        "n": len(found),
        "unparsed": sum(row.unclear for row in found),
    }


def _together(keyed: Iterable[tuple[Hashable, Row]]) -> float | None:
    groups: defaultdict[Hashable, list[bool]] = defaultdict(list)
    for key, row in keyed:
        groups[key].append(row.correct)
    return _share([all(group) for group in groups.values()])


def _share(right: list[bool]) -> float | None:
    return sum(right) / len(right) if right else None
