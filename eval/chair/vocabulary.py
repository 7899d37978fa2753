"""The words that name an object of COCO, and the category that each stands for."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import cast

from eval.errors import InputError
from eval.inputs import lines

OURS = cast(Path, files(__package__) / "synonyms.txt")


class Vocabulary(dict[str, str]):
    """Word to category ("node"). A line of the file is a category and its synonyms, separated by a comma and a blank.

    Read as the official script reads its file, where two blanks after a comma give a word that nothing can match; a
    word that stands on two lines belongs to the later one.
    """

    @classmethod
    def load(cls, file: Path | None = None) -> Vocabulary:
        """Our own table without `file`.

        Raises:
            InputError: no words at all.
        """
        rows = [line.strip().split(", ") for line in lines(file or OURS) if line.strip()]
        if not rows:
            raise InputError("holds no synonyms", file or OURS)
        return cls({word: row[0] for row in rows for word in row})
