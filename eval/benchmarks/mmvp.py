"""The task `mmvp`: MMVP (arXiv:2401.06209), pairs of images that vision encoders take for alike.

Both images of a pair have the same question with two options and different answers. A pair counts if both answers are
right. The authors let GPT-4 compare answers and labels. Here the letter of the answer is read as in lmms-eval.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eval.core.dataset import ImageFolder
from eval.core.jsonl import read_lines
from eval.core.metrics import Metric
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions
from eval.errors import InputError

FILE = "Questions.csv"
FIELDS = ("Index", "Question", "Options", "Correct Answer")
IMAGE_FOLDERS = ("MMVP Images", "images", ".")
SUFFIX = "Answer with the option's letter from the given choices directly."
LETTERS = ("A", "B")
ALL = {"n": 1.0}
OPTIONS = re.compile(r"\(a\)\s*(.+?)\s*\(b\)\s*(.+)", re.IGNORECASE | re.DOTALL)
# lmms-eval tries these in turn: the letter alone, at the start, after "answer is", after "option", anywhere.
PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[\.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
    )
)

METRICS = (
    Metric(
        "pair_accuracy",
        "Pairs",
        {"both": 1},
        {"pairs": 1},
        primary=True,
        meaning="share of pairs with both answers right",
    ),
    Metric("accuracy", "Accuracy", {"right": 1}, ALL, per_question=True, meaning="share of right answers"),
    Metric("a_ratio", "A", {"a": 1}, ALL, better="neither"),
)


def parse_letter(answer: str) -> str | None:
    """Read the letter of an answer as lmms-eval does.

    Args:
        answer: The answer.

    Returns:
        A or B, or None if there is no such letter. "A cat" is an A.
    """
    answer = answer.strip()
    for pattern in PATTERNS:
        if found := pattern.search(answer):
            return found.group(1).upper()
    first = answer[:1].upper()
    return first if first in LETTERS else None


class MmvpTask(BenchmarkTask):
    """MMVP from the released `Questions.csv`.

    Args:
        data: Folder with the file and with a folder `MMVP Images` or `images`.
        options: `suffix` applies.
    """

    name = "mmvp"
    title = "MMVP"
    max_tokens = 16
    metrics = METRICS
    overall_scope = None
    joint_drop_warnings = ()
    cluster = "pair"

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.data = data
        self.suffix = SUFFIX if options.suffix is None else options.suffix

    @property
    def constant_answers(self) -> Mapping[str, str]:
        """Rows of one letter to every question."""
        return {f"all {letter}": letter for letter in LETTERS}

    def list_source_files(self) -> list[Path]:
        """List the question file."""
        return [self.data / FILE]

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the questions. Rows 2i - 1 and 2i are a pair.

        Returns:
            The questions.

        Raises:
            InputError: A column or value is missing or invalid, or a question is not in a pair.
        """
        [file] = self.list_source_files()
        reader = csv.DictReader(io.StringIO("\n".join(read_lines(file)), newline=""))
        if missing := [name for name in FIELDS if name not in (reader.fieldnames or ())]:
            raise InputError("is not a column of the file", file, 1, missing[0])
        images = ImageFolder(self.data, IMAGE_FOLDERS)
        questions: dict[int, BenchmarkQuestion] = {}
        for row in reader:
            index, question = self._build_question(row, file, reader.line_num, images)
            if index in questions:
                raise InputError(f"{index} is used twice", file, reader.line_num, "Index")
            questions[index] = question
        for index in questions:
            other = index + 1 if index % 2 else index - 1
            if other not in questions:
                raise InputError(f"question {index} has no question {other} beside it", file, None, "Index")
        if not questions:
            raise InputError("has no questions", file)
        return [questions[index] for index in sorted(questions)]

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Score the answers. The second question of a pair carries the counts of the pair.

        Args:
            questions: The questions.
            answers: The answers, in the same order.

        Returns:
            One score for each answer. A question without the other one of its pair has no counts.
        """
        letters = [parse_letter(answer) for answer in answers]
        correct = [letter == question.truth["label"] for question, letter in zip(questions, letters, strict=True)]
        pairs: dict[str | None, list[int]] = {}
        for index, question in enumerate(questions):
            pairs.setdefault(question.group, []).append(index)
        counts: list[dict[str, float]] = [
            {"n": 1, "right": int(right), "a": int(letter == "A")}
            for right, letter in zip(correct, letters, strict=True)
        ]
        for indices in pairs.values():
            if len(indices) == 2:
                counts[indices[-1]] |= {"pairs": 1, "both": int(all(correct[index] for index in indices))}
            else:  # The other question has no answer.
                counts[indices[0]] = {}
        return [
            Score(each, {"parsed": letter, "right": right})
            for each, letter, right in zip(counts, letters, correct, strict=True)
        ]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return the reader and the number of answers without a letter."""
        return {"reader": "letter", "unparsed": sum(parse_letter(answer) is None for answer in answers)}

    def _build_question(
        self, row: Mapping[str, str | None], file: Path, line: int, images: ImageFolder
    ) -> tuple[int, BenchmarkQuestion]:
        values = {name: (row[name] or "").strip() for name in FIELDS}
        if not values["Index"].isdecimal() or not int(values["Index"]):
            raise InputError(f"is {values['Index']!r}, not a positive integer", file, line, "Index")
        label = values["Correct Answer"].strip("()").upper()
        if label not in LETTERS:
            raise InputError(f"is {values['Correct Answer']!r}, not (a) or (b)", file, line, "Correct Answer")
        options = OPTIONS.fullmatch(values["Options"])
        if options is None:
            raise InputError(f"is {values['Options']!r}, not (a) ... (b) ...", file, line, "Options")
        index = int(values["Index"])
        image = images.find_image(f"{index}.jpg") or images.find_image(f"{index}.png")
        if image is None:
            raise InputError(f"there is no image {index}.jpg under {self.data}", file, line, "Index")
        pair = f"pair {(index + 1) // 2}"
        listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, options.groups(), strict=True)]
        prompt = f"{values['Question']} {values['Options']}"
        official: JsonValue = {
            "question_id": index,
            "prompt": prompt,
            "answer": values["Correct Answer"],
        }
        return index, BenchmarkQuestion(
            str(index),
            "pairs",
            image,
            "\n".join([values["Question"], *listed, *filter(None, [self.suffix])]),
            {"label": label, "question": prompt, "row": official},
            group=pair,
            cluster_name=pair,
        )
