"""The part of MME (arXiv:2306.13394) that asks for hallucinations: existence, count, position and colour.

Every picture has two questions. A subtask scores 100 x (accuracy + accuracy+), where accuracy+ is the share of pictures
with both answers right; 200 at most, 800 for the four.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.errors import InputError
from eval.inputs import lines

SUBTASKS = ("existence", "count", "position", "color")


@dataclass(frozen=True)
class Subtask:
    """Shares between 0 and 1. `unparsed` answers are neither yes nor no, and wrong."""

    accuracy: float
    accuracy_plus: float
    n: int
    unparsed: int

    @property
    def score(self) -> float:
        return 100 * (self.accuracy + self.accuracy_plus)


def read(answer: str) -> Literal["yes", "no", "other"]:
    """As the evaluation code of Otter and lmms-eval: the whole answer, else a yes or a no in its first four letters."""
    answer = answer.lower().strip().replace(".", "")
    if answer in ("y", "n"):
        return "yes" if answer == "y" else "no"
    return "yes" if "yes" in answer[:4] else "no" if "no" in answer[:4] else "other"


def subtask(file: Path) -> Subtask:
    """From the official lines `picture<TAB>question<TAB>truth<TAB>answer`.

    Raises:
        InputError: a line of another shape, or a picture without exactly two questions.
    """
    right: defaultdict[str, list[bool]] = defaultdict(list)
    unparsed = 0
    for number, line in enumerate(lines(file), start=1):
        if not line.strip():
            continue
        parts = line.split("\t", 3)
        if len(parts) != 4:
            raise InputError(f"has {len(parts)} of the 4 parts that tabs separate", file, number)
        picture, _, truth, answer = parts
        if read(truth) not in (truth.lower().strip(), truth.lower().strip().rstrip(".")):
            raise InputError(f"is {truth!r}, not Yes or No", file, number, "truth")
        unparsed += read(answer) == "other"
        right[picture].append(read(answer) == read(truth))
    for picture, pair in right.items():
        if len(pair) != 2:
            raise InputError(f"{picture!r} has {len(pair)} questions, not 2", file)
    if not right:
        raise InputError("holds no answers", file)
    n = 2 * len(right)
    return Subtask(sum(map(sum, right.values())) / n, sum(map(all, right.values())) / len(right), n, unparsed)


def score(folder: Path) -> dict[str, object]:
    """Of the four files `existence.txt` and so on."""
    found = {name: subtask(folder / f"{name}.txt") for name in SUBTASKS}
    return {
        "total": sum(each.score for each in found.values()),
        **{name: each.score for name, each in found.items()},
        "accuracy": {name: each.accuracy for name, each in found.items()},
        "accuracy_plus": {name: each.accuracy_plus for name, each in found.items()},
        "n": sum(each.n for each in found.values()),
        "unparsed": sum(each.unparsed for each in found.values()),
    }
