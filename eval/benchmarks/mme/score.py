"""The hallucination subset of MME (arXiv:2306.13394): existence, count, position and colour.

Every image has two questions. A subtask scores 100 x (accuracy + accuracy+), where accuracy+ is the share of images
with both answers correct. The maximum is 200 for a subtask and 800 in total.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.core.jsonl import read_lines
from eval.errors import InputError

SUBTASKS = ("existence", "count", "position", "color")


@dataclass(frozen=True)
class SubtaskScore:
    """The score of one subtask.

    Attributes:
        accuracy: Share of correct answers, between 0 and 1.
        accuracy_plus: Share of images with both answers correct, between 0 and 1.
        n: Number of questions.
        unparsed: Number of answers that are neither yes nor no. They are wrong.
    """

    accuracy: float
    accuracy_plus: float
    n: int
    unparsed: int

    @property
    def score(self) -> float:
        """100 x (accuracy + accuracy+)."""
        return 100 * (self.accuracy + self.accuracy_plus)


def parse_yes_no(answer: str) -> Literal["yes", "no", "other"]:
    """Parse an answer as the evaluation code of Otter and lmms-eval does.

    Args:
        answer: The answer.

    Returns:
        `yes` or `no` if the whole answer is y or n, or if its first four characters contain yes or no. Else `other`.
    """
    answer = answer.lower().strip().replace(".", "")
    if answer in ("y", "n"):
        return "yes" if answer == "y" else "no"
    return "yes" if "yes" in answer[:4] else "no" if "no" in answer[:4] else "other"


def score_subtask(file: Path, constant: str | None = None) -> SubtaskScore:
    """Score the official lines `image<TAB>question<TAB>truth<TAB>answer`.

    Args:
        file: The file.
        constant: An answer that replaces all answers of the file.

    Returns:
        The score.

    Raises:
        InputError: A line has another form, an image has not exactly two questions, or there is no answer.
    """
    correct: defaultdict[str, list[bool]] = defaultdict(list)
    unparsed = 0
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        parts = line.split("\t", 3)
        if len(parts) != 4:
            raise InputError(f"has {len(parts)} tab-separated fields, not 4", file, number)
        image, _, truth, answer = parts if constant is None else (*parts[:3], constant)
        if parse_yes_no(truth) not in (truth.lower().strip(), truth.lower().strip().rstrip(".")):
            raise InputError(f"is {truth!r}, not Yes or No", file, number, "truth")
        unparsed += parse_yes_no(answer) == "other"
        correct[image].append(parse_yes_no(answer) == parse_yes_no(truth))
    for image, pair in correct.items():
        if len(pair) != 2:
            raise InputError(f"{image!r} has {len(pair)} questions, not 2", file)
    if not correct:
        raise InputError("has no answers", file)
    n = 2 * len(correct)
    return SubtaskScore(
        sum(map(sum, correct.values())) / n, sum(map(all, correct.values())) / len(correct), n, unparsed
    )


def score_results(folder: Path, constant: str | None = None) -> dict[str, object]:
    """Score the four files `existence.txt`, `count.txt`, `position.txt` and `color.txt` of a folder.

    Args:
        folder: The folder.
        constant: An answer that replaces all answers of the files.

    Returns:
        The numbers by name.
    """
    scores = {name: score_subtask(folder / f"{name}.txt", constant) for name in SUBTASKS}
    return {
        "total": sum(each.score for each in scores.values()),
        **{name: each.score for name, each in scores.items()},
        "accuracy": {name: each.accuracy for name, each in scores.items()},
        "accuracy_plus": {name: each.accuracy_plus for name, each in scores.items()},
        "n": sum(each.n for each in scores.values()),
        "unparsed": sum(each.unparsed for each in scores.values()),
    }
