"""What a caption says is there: tokens, singular words, double words, objects. Three variants, never to be mixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from eval.chair.fixed import fixed_reader
from eval.chair.lemma import lemmas
from eval.chair.mention import Mention, Reading
from eval.chair.pairs import merged
from eval.chair.singular import singular
from eval.chair.tokens import tokens
from eval.chair.vocabulary import Vocabulary

Variant = Literal["original", "lemma", "fixed"]
Reader = Callable[[str], Reading]


def reader(variant: Variant, vocabulary: Vocabulary) -> Reader:
    """How a variant reads a caption.

    - original: LisaAnne/Hallucination utils/chair.py and its stand-alone copies, with the singular of pattern;
    - lemma: shikiw/OPERA chair.py and what followed it, with WordNet lemmas by part of speech; needs data of nltk;
    - fixed: ours, see `eval/chair/fixed.py`.

    Raises:
        EvaluationError: the data for `lemma` is not installed.
    """
    if variant == "fixed":
        return fixed_reader(vocabulary)
    base = lemmas() if variant == "lemma" else _singulars
    return lambda caption: _read(caption, base, vocabulary)


def _singulars(words: Sequence[str]) -> list[str]:
    return [singular(word) for word in words]


def _read(caption: str, base: Callable[[Sequence[str]], list[str]], vocabulary: Vocabulary) -> Reading:
    raw = tokens(caption)
    words = merged(base(raw))
    spoken = {word for word, _, _ in words}
    # "The seat of the toilet" is no chair.
    dropped = "seat" if {"toilet", "seat"} <= spoken else None
    found = [
        Mention(word, vocabulary[word], first, last)
        for word, first, last in words
        if word in vocabulary and word != dropped
    ]
    return Reading(tuple(raw), len(words), tuple(found))
