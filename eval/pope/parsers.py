"""Five ways to read yes or no out of an answer; on wordy answers they differ by tens of points.

Each follows the code that is in use, faults included: `official` is AoiDragon/POPE evaluate.py, `opera` is
shikiw/OPERA pope_eval.py, `vcd` is DAMO-NLP-SG/VCD eval_pope.py, `lmms-eval` its tasks/pope/utils.py, `vlmevalkit` its
utils/yorn.py without a judge model.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

YesNo = Literal["yes", "no"]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


class Parser(ABC):
    name: ClassVar[str]
    unread_yes_is_missed: ClassVar[bool] = True
    """Whether a question labelled yes counts as a false negative if its answer was read as neither."""
    yes_ratio_of_labels: ClassVar[bool] = False

    @abstractmethod
    def read(self, answer: str, label: str) -> YesNo | None:
        """What the answer is taken for; None counts as wrong whatever the label. `label` as it stands in the file."""

    @abstractmethod
    def unparsed(self, answer: str) -> bool:
        """Whether `read` had nothing to go by. It changes no count."""

    def gold(self, label: str) -> YesNo | None:
        """None for a label that the original refuses, or counts in the total alone."""
        label = label.lower().strip()
        return "yes" if label == "yes" else "no" if label == "no" else None


class Official(Parser):
    """Up to the first full stop, without commas, split at single blanks: `No`, `no` or `not` among the pieces is a no.

    Everything else is a yes: an empty answer, `NO`, `No!`, `isn't`. A label is a no only if it is exactly `no`.
    Unparsed is an answer without any of the words yes, no and not, in whatever case and place.
    """

    name = "official"

    def read(self, answer: str, label: str) -> YesNo:
        pieces = answer.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"}.intersection(pieces) else "yes"

    def unparsed(self, answer: str) -> bool:
        return re.search(r"\b(yes|no|not)\b", answer, re.IGNORECASE) is None

    def gold(self, label: str) -> YesNo:
        return "no" if label == "no" else "yes"


class Opera(Official):
    """The whole answer, without full stops and commas; `NO` and words that end in `n't` are a no as well."""

    name = "opera"

    def read(self, answer: str, label: str) -> YesNo:
        pieces = answer.replace(".", "").replace(",", "").split(" ")
        negated = any(piece in ("No", "not", "no", "NO") or piece.endswith("n't") for piece in pieces)
        return "no" if negated else "yes"

    def unparsed(self, answer: str) -> bool:
        return super().unparsed(answer) and re.search(r"n't\b", answer, re.IGNORECASE) is None


class VCD(Parser):
    """Looks for the label in the answer, as a part of any word: `know` and `snowboard` answer no to a label no."""

    name = "vcd"

    def read(self, answer: str, label: str) -> YesNo | None:
        answer = answer.lower()
        match self.gold(label):
            case "yes":
                return "yes" if "yes" in answer else "no"
            case "no":
                return "no" if "no" in answer else "yes"
            case _:
                return None

    def unparsed(self, answer: str) -> bool:
        return not any(word in answer.lower() for word in ("yes", "no"))


class LmmsEval(Parser):
    """The answer, lower-cased and stripped, must be `yes` or `no` and nothing else: `Yes.` is wrong.

    Its recall leaves out the answers that are neither, and its yes ratio is that of the labels.
    """

    name = "lmms-eval"
    unread_yes_is_missed = False
    yes_ratio_of_labels = True

    def read(self, answer: str, label: str) -> YesNo | None:
        answer = answer.lower().strip()
        return "yes" if answer == "yes" else "no" if answer == "no" else None

    def unparsed(self, answer: str) -> bool:
        return self.read(answer, "") is None


class VLMEvalKit(Parser):
    """One of the words yes and no, and not the other, after punctuation is gone."""

    name = "vlmevalkit"

    def read(self, answer: str, label: str) -> YesNo | None:
        words = _without_punctuation(answer.lower()).split()
        if ("yes" in words) == ("no" in words):
            return None
        return "yes" if "yes" in words else "no"

    def unparsed(self, answer: str) -> bool:
        return self.read(answer, "") is None


def _without_punctuation(text: str) -> str:
    """The clean-up of the VQA challenge: a mark that stands at a blank somewhere goes, any other becomes a blank.

    A comma between digits makes all marks go. Full stops go unless a digit follows; the original passes a flag where
    `re.sub` takes a count, so only the first 32 do.
    """
    thousands = re.search(r"\d,\d", text) is not None
    clean = text
    for mark in PUNCTUATION:
        clean = clean.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", clean, count=32)


PARSERS: dict[str, Parser] = {each.name: each for each in (Official(), Opera(), VCD(), LmmsEval(), VLMEvalKit())}
