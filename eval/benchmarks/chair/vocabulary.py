"""Words for the objects of COCO: the table of synonyms, and pairs of words that count as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import cast

from eval.core.jsonl import read_lines
from eval.errors import InputError

DEFAULT_SYNONYMS = cast(Path, files(__package__) / "synonyms.txt")


class ObjectVocabulary(dict[str, str]):
    """Word to category ("node").

    A line of the file is a category and its synonyms, separated by a comma and a space. The file is parsed like in the
    official script. Two spaces after a comma give a word that nothing can match. A word on two lines belongs to
    the later one.
    """

    @classmethod
    def load(cls, file: Path | None = None) -> ObjectVocabulary:
        """Load a table of synonyms.

        Args:
            file: The table. None loads the table of this repository.

        Returns:
            The vocabulary.

        Raises:
            InputError: The file has no words.
        """
        rows = [line.strip().split(", ") for line in read_lines(file or DEFAULT_SYNONYMS) if line.strip()]
        if not rows:
            raise InputError("has no synonyms", file or DEFAULT_SYNONYMS)
        return cls({word: row[0] for row in rows for word in row})


KEPT_PAIRS = """
    motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant,
    stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass,
    hot dog, cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer, home plate, train
    track
"""
ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
VEHICLES = ["jet", "train"]

DOUBLE_WORDS: dict[str, str] = {
    **{" ".join(pair.split()): " ".join(pair.split()) for pair in KEPT_PAIRS.split(",")},
    # Otherwise the qualifier counts as a person.
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in VEHICLES},
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",  # the singular that pattern forms of "wine glass"
}


def merge_double_words(
    words: Sequence[str], double_words: Mapping[str, str] = DOUBLE_WORDS
) -> list[tuple[str, int, int]]:
    """Merge pairs of words from left to right.

    Args:
        words: Words in the singular.
        double_words: Pair to the word that replaces it.

    Returns:
        The words, each with the index of its first and its last word in `words`.
    """
    merged = []
    index = 0
    while index < len(words):
        pair = " ".join(words[index : index + 2])
        if pair in double_words:
            merged.append((double_words[pair], index, index + 1))
            index += 2
        else:
            merged.append((words[index], index, index))
            index += 1
    return merged
