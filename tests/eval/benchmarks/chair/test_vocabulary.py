"""The table of synonyms of this repository."""

from __future__ import annotations

from eval.benchmarks.chair.vocabulary import ObjectVocabulary
from tests.eval.coco_data import OFFICIAL_SYNONYMS


def test_the_default_table_has_the_80_categories() -> None:
    ours = ObjectVocabulary.load()
    assert len(set(ours.values())) == 80
    assert all(ours[node] == node for node in ours.values())
    assert all(word == word.strip().lower() and len(word.split()) <= 3 for word in ours)
    if OFFICIAL_SYNONYMS.exists():
        assert set(ours.values()) == set(ObjectVocabulary.load(OFFICIAL_SYNONYMS).values())


def test_the_default_table_has_british_words() -> None:
    ours = ObjectVocabulary.load()
    words = ("aeroplane", "lorry", "telly", "settee", "racquet", "tram", "necktie", "doughnut", "mobile phone")
    assert [ours[word] for word in words] == [
        *("airplane", "truck", "tv", "couch", "tennis racket", "train", "tie", "donut", "cell phone"),
    ]  # fmt: skip
