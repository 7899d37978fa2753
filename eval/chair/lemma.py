"""Lemmas by part of speech, as most papers on mitigation use them in place of the singular (shikiw/OPERA chair.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eval.errors import EvaluationError

PARTS = {"J": "a", "V": "v", "R": "r"}
"""First letter of a Penn Treebank tag to WordNet's part of speech; all others, and the unknown, are nouns."""

NEEDED = {"corpora/wordnet": "wordnet", "taggers/averaged_perceptron_tagger_eng": "averaged_perceptron_tagger_eng"}


def lemmas() -> Callable[[Sequence[str]], list[str]]:
    """From tokens to lemmas.

    Raises:
        EvaluationError: nltk's data is not installed; names the command that does it.
    """
    import nltk
    from nltk.stem import WordNetLemmatizer

    missing = [package for path, package in NEEDED.items() if not installed(path)]
    if missing:
        raise EvaluationError(
            f"the variant lemma needs data that nltk keeps apart: python -m nltk.downloader {' '.join(missing)}"
        )
    lemmatize = WordNetLemmatizer().lemmatize

    def of(words: Sequence[str]) -> list[str]:
        return [lemmatize(word, pos=PARTS.get(tag[:1], "n")) for word, tag in nltk.pos_tag(list(words))]

    return of


def installed(path: str) -> bool:
    import nltk

    for place in (path, f"{path}.zip"):
        try:
            nltk.data.find(place)
        except LookupError:
            continue
        return True
    return False
