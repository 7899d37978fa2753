"""Five parsers of yes/no answers. On long answers their numbers differ by tens of points.

Each reproduces the code of its source, with its errors:

- `official`: evaluate.py of AoiDragon/POPE;
- `opera`: pope_eval.py of shikiw/OPERA;
- `vcd`: eval_pope.py of DAMO-NLP-SG/VCD;
- `lmms-eval`: its tasks/pope/utils.py;
- `vlmevalkit`: its utils/yorn.py, without a judge model.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

YesNo = Literal["yes", "no"]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


class AnswerParser(ABC):
    """A parser of yes/no answers.

    Attributes:
        name: Name on the command line.
        counts_unparsed_yes_as_fn: Whether an unparsed answer to a question with the label yes is a false negative.
        yes_ratio_of_labels: Whether the yes ratio is that of the labels instead of the answers.
    """

    name: ClassVar[str]
    counts_unparsed_yes_as_fn: ClassVar[bool] = True
    yes_ratio_of_labels: ClassVar[bool] = False

    @abstractmethod
    def parse(self, answer: str, label: str) -> YesNo | None:
        """Parse an answer.

        Args:
            answer: The answer.
            label: The label as it is in the file. Only `vcd` depends on it.

        Returns:
            The parsed answer. None is wrong for every label.
        """

    @abstractmethod
    def is_unparsed(self, answer: str) -> bool:
        """Return whether the answer has no word that the parser recognises. This changes no other number."""

    def parse_label(self, label: str) -> YesNo | None:
        """Parse a label. None for a label that the original refuses or only counts in the total."""
        label = label.lower().strip()
        return "yes" if label == "yes" else "no" if label == "no" else None


class OfficialParser(AnswerParser):
    """`No`, `no` or `not` before the first full stop is a no. Commas are removed and the text is split at spaces.

    Everything else is a yes: an empty answer, `NO`, `No!`, `isn't`. A label is a no only if it is exactly `no`. An
    answer without any of the words yes, no and not, in any case and position, is unparsed.
    """

    name = "official"

    def parse(self, answer: str, label: str) -> YesNo:
        words = answer.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"}.intersection(words) else "yes"

    def is_unparsed(self, answer: str) -> bool:
        return re.search(r"\b(yes|no|not)\b", answer, re.IGNORECASE) is None

    def parse_label(self, label: str) -> YesNo:
        return "no" if label == "no" else "yes"


class OperaParser(OfficialParser):
    """The whole answer, without full stops and commas. `NO` and words that end in `n't` are a no as well."""

    name = "opera"

    def parse(self, answer: str, label: str) -> YesNo:
        words = answer.replace(".", "").replace(",", "").split(" ")
        negated = any(word in ("No", "not", "no", "NO") or word.endswith("n't") for word in words)
        return "no" if negated else "yes"

    def is_unparsed(self, answer: str) -> bool:
        return super().is_unparsed(answer) and re.search(r"n't\b", answer, re.IGNORECASE) is None


class VcdParser(AnswerParser):
    """Search for the label in the answer, inside words too: `know` and `snowboard` are a no if the label is no."""

    name = "vcd"

    def parse(self, answer: str, label: str) -> YesNo | None:
        answer = answer.lower()
        match self.parse_label(label):
            case "yes":
                return "yes" if "yes" in answer else "no"
            case "no":
                return "no" if "no" in answer else "yes"
            case _:
                return None

    def is_unparsed(self, answer: str) -> bool:
        return not any(word in answer.lower() for word in ("yes", "no"))


class LmmsEvalParser(AnswerParser):
    """The answer in lower case, without surrounding whitespace, must be `yes` or `no`. `Yes.` is wrong.

    Recall ignores unparsed answers, and the yes ratio is that of the labels.
    """

    name = "lmms-eval"
    counts_unparsed_yes_as_fn = False
    yes_ratio_of_labels = True

    def parse(self, answer: str, label: str) -> YesNo | None:
        answer = answer.lower().strip()
        return "yes" if answer == "yes" else "no" if answer == "no" else None

    def is_unparsed(self, answer: str) -> bool:
        return self.parse(answer, "") is None


class VlmEvalKitParser(AnswerParser):
    """One of the words yes and no without the other, after punctuation is removed."""

    name = "vlmevalkit"

    def parse(self, answer: str, label: str) -> YesNo | None:
        words = _remove_punctuation(answer.lower()).split()
        if ("yes" in words) == ("no" in words):
            return None
        return "yes" if "yes" in words else "no"

    def is_unparsed(self, answer: str) -> bool:
        return self.parse(answer, "") is None


def _remove_punctuation(text: str) -> str:
    """Clean up a text like the VQA challenge.

    A mark that is next to a space anywhere in the text is deleted, other marks become spaces. A comma between digits
    causes all marks to be deleted. Full stops are deleted unless a digit follows. The original passes a flag as the
    `count` of `re.sub`, so only the first 32 are deleted.

    Args:
        text: The text.

    Returns:
        The cleaned text.
    """
    has_thousands_comma = re.search(r"\d,\d", text) is not None
    clean = text
    for mark in PUNCTUATION:
        clean = clean.replace(mark, "" if has_thousands_comma or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", clean, count=32)


PARSERS: dict[str, AnswerParser] = {
    parser.name: parser
    for parser in (OfficialParser(), OperaParser(), VcdParser(), LmmsEvalParser(), VlmEvalKitParser())
}
