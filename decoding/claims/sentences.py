"""Split a growing text into sentences."""

from __future__ import annotations

import re
from collections.abc import Callable

from decoding.claims.words import load_words

ABBREVIATIONS = load_words("abbreviations")
END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s)|\n+|[。！？]")


def find_sentence_end(text: str, start: int = 0) -> int | None:
    """Find the end of the first sentence.

    Args:
        text: Text that may go on. A full stop at its very end does not count: a digit or a letter may follow.
        start: Offset at which the sentence begins.

    Returns:
        The offset behind the sentence and its closing quotes, before the space; None where it has no end yet.
    """
    for found in END.finditer(text, start):
        before = text[start : found.start()].rsplit(None, 1)
        word = before[-1].lower().lstrip("(\"'") if before else ""
        is_initial = len(word) == 1 and word.isalpha() and word not in "ai"
        is_numbering = word.isdigit() and len(before) == 1
        is_abbreviation = word in ABBREVIATIONS and not (word == "no" and len(before) == 1)
        if found[0].startswith(".") and (is_abbreviation or is_initial or is_numbering):
            continue
        if not text[start : found.start()].strip():
            continue
        return found.end()
    return None


def completes_sentence(text: str, start: int = 0) -> Callable[[str], bool]:
    """Return a condition for `ReadDraft`: whether the next text completes the sentence that begins at `start`."""

    def is_complete(following: str) -> bool:
        return find_sentence_end(text + following, start) is not None

    return is_complete
