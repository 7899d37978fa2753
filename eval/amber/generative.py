"""AMBER's captions: which nouns of its vocabulary are in the picture, and which are the expected inventions.

The official script takes nouns from nltk, and calls two words the same if spaCy's en_core_web_lg finds them more
similar than 0.8; so its numbers depend on the version of that model. Both are named where they are missing, and the
similarity can be left out, which makes CHAIR and Cog a little worse or better than the published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eval.amber.answers import Item
from eval.amber.discriminative import GENERATIVE
from eval.errors import EvaluationError, InputError
from eval.inputs import document, lines

THRESHOLD = 0.8
DATA = {
    "tokenizers/punkt_tab": "punkt_tab",
    "taggers/averaged_perceptron_tagger_eng": "averaged_perceptron_tagger_eng",
    "corpora/wordnet": "wordnet",
}

Nouns = Callable[[str], list[str]]
Similar = Callable[[str, str], bool]


@dataclass(frozen=True)
class Words:
    """AMBER's vocabulary: `relation.json` and `safe_words.txt`."""

    associated: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @classmethod
    def load(cls, relation: Path, safe_words: Path) -> Words:
        associated = document(relation)
        for word, others in associated.items():
            if not isinstance(others, list) or not all(isinstance(each, str) for each in others):
                raise InputError("must be a list of texts", relation, None, word)
        return cls(associated, frozenset(lines(safe_words)))

    @property
    def all(self) -> frozenset[str]:
        return frozenset(self.associated).union(*self.associated.values())

    def around(self, item: Item, key: str) -> list[tuple[str, int]]:
        """Words that stand for those under `key` of an annotation, with the place of what they stand for."""
        listed = item.annotation.texts(key)
        for word in listed:
            if word not in self.associated:
                raise item.annotation.error(f"{word!r} is not in the relations", key)
        extra = [(other, place) for place, word in enumerate(listed) for other in self.associated[word]]
        return extra + [(word, place) for place, word in enumerate(listed)]


def score(items: Sequence[Item], words: Words, nouns: Nouns, similar: Similar) -> dict[str, float]:
    """CHAIR, Cover, Hal and Cog in per cent, rounded and with 0.001 added to every count as in the official script."""
    captions = [item for item in items if item.kind == GENERATIVE]
    vocabulary = words.all
    mentioned = wrong = there = covered = expected = invented = clean = 0
    for item in captions:
        said = [noun for noun in nouns(item.response) if noun in vocabulary]
        seen, dreamt, unsafe = _judge(
            said, words.around(item, "truth"), words.around(item, "hallu"), words.safe, similar
        )
        mentioned, wrong, clean = mentioned + len(said), wrong + unsafe, clean + (unsafe == 0)
        there, covered = there + len(item.annotation.texts("truth")), covered + len(seen)
        expected, invented = expected + len(item.annotation.texts("hallu")), invented + len(dreamt)
    return {
        "chair": round(wrong / (mentioned + 0.001) * 100, 1),
        "cover": round(covered / (there + 0.001) * 100, 1),
        "hal": round(100 - clean / (len(captions) + 0.001) * 100, 1),
        "cog": round(invented / (expected + 0.001) * 100, 1),
        "n": len(captions),
    }


def _judge(
    said: Sequence[str],
    truth: Sequence[tuple[str, int]],
    hallu: Sequence[tuple[str, int]],
    safe: frozenset[str],
    similar: Similar,
) -> tuple[set[int], set[int], int]:
    """What was seen, which of the expected inventions came, and how many nouns are neither safe nor there."""
    seen: set[int] = set()
    dreamt: set[int] = set()
    unsafe = 0
    for noun in said:
        if noun in safe:
            continue
        exact = next(_places(truth, noun), None)
        if exact is not None:
            seen.add(exact)
            continue
        dreamt.update([place] if (place := next(_places(hallu, noun), None)) is not None else [])
        dreamt.update([place] if (place := _nearest(hallu, noun, similar)) is not None else [])
        near = _nearest(truth, noun, similar)
        if near is None:
            unsafe += 1
        else:
            seen.add(near)
    return seen, dreamt, unsafe


def _places(words: Sequence[tuple[str, int]], noun: str) -> Iterator[int]:
    return (place for word, place in words if word == noun)


def _nearest(words: Sequence[tuple[str, int]], noun: str, similar: Similar) -> int | None:
    return next((place for word, place in words if similar(noun, word)), None)


def nltk_nouns() -> Nouns:
    """
    Raises:
        EvaluationError: names the data that is missing, and the command that installs it.
    """
    import nltk
    from nltk.stem import WordNetLemmatizer

    from eval.chair.lemma import installed

    missing = [package for path, package in DATA.items() if not installed(path)]
    if missing:
        raise EvaluationError(f"AMBER's captions need nltk's data: python -m nltk.downloader {' '.join(missing)}")
    lemmatize = WordNetLemmatizer().lemmatize
    return lambda text: [
        lemmatize(word) for word, tag in nltk.pos_tag(nltk.word_tokenize(text)) if tag.startswith("NN")
    ]


def spacy_similar() -> Similar:
    """
    Raises:
        EvaluationError: spaCy or its model is not installed.
    """
    try:
        import spacy  # type: ignore[import-not-found]

        model = spacy.load("en_core_web_lg")
    except (ImportError, OSError) as error:
        raise EvaluationError(
            "AMBER's captions need spaCy: pip install spacy && python -m spacy download en_core_web_lg; "
            "or leave its similarity out with --no-similarity"
        ) from error

    @cache
    def similar(one: str, other: str) -> bool:
        return bool(model(one).similarity(model(other)) > THRESHOLD)

    return similar
