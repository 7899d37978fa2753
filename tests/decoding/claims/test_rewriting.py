"""Sentences that lose a noun phrase, or get other text in its place."""

from __future__ import annotations

import pytest

from decoding.claims.rewriting import is_grammatical, shorten_sentence


@pytest.mark.parametrize(
    ("sentence", "phrase", "shorter"),
    [
        ("There are two people, two cups and a train.", "a train", "There are two people and two cups."),
        ("The image shows a kitchen with a dog.", "a dog", "The image shows a kitchen."),
        ("There are also a dog, a cat and a bus.", "a bus", "There are also a dog and a cat."),
        ("There are also a dog, a cat and a bus.", "a cat", "There is also a dog."),
        ("There are a dog and a cat.", "a cat", "There is a dog."),
        ("There are several dogs and a cat.", "a cat", "There are several dogs."),
        (
            "In the background, there is a dog, a cat and a bus.",
            "a bus",
            "In the background, there is a dog and a cat.",
        ),
        ("In the background, there is a dog and a cat.", "a cat", "In the background, there is a dog."),
        ("In the background, a dog and a cat are sitting.", "a cat", None),
        ("A man is holding an umbrella.", "an umbrella", None),
        ("A dog lies there.", "A dog", None),
        (
            "It has a plate of food, a glass of water and a fork.",
            "a fork",
            "It has a plate of food and a glass of water.",
        ),
        ("Visible are a dog, a cat and a bus.", "a cat", "Visible is a dog."),
        ("The lamp stands between a couch and a chair.", "a chair", None),
        ("The image shows either a dog or a cat.", "a cat", None),
        ('"There is a dog and a cat," he said.', "a cat", None),
        ("The image (it shows a dog and a cat) is dark.", "a cat", None),
    ],
)
def test_sentence_ends_before_a_phrase(sentence: str, phrase: str, shorter: str | None) -> None:
    assert shorten_sentence(sentence, sentence.index(phrase)) == shorter


@pytest.mark.parametrize(
    ("sentence", "new", "expected"),
    [
        ("There is also a small brown dog.", "a small", True),
        ("There is a sense of calm.", "a sense", False),
        ("A spoon and an office can be seen too.", "an office", False),
        ("A spoon and an office chair can be seen too.", "an office", True),
        ("There are also an apple.", "an apple", False),
        ("There are also an apple and a cup.", "an apple", True),
        ("There is also bread on the table.", "bread", True),
        ("A fork can be seen nearby.", "A fork", True),
        ("There is also a There is a kite.", "a There", False),
        ("There is also a described.", "a described", False),
        ("There is a dog and a described in a city.", "a dog", False),
        ("Other objects include An umbrella.", "An umbrella", False),
        ("shown can be seen nearby.", "shown", False),
        ("There is a man walking with.", ".", False),
        ("There is also a", "a", False),
        ("There is a kite in.", "a kite", False),
        ("There is a kite and.", "a kite", False),
        ("There is a dogs.", "a dogs", False),
        ("There are dog.", "dog", False),
        ("There is two dogs.", "two", False),
        ("There is also several dogs.", "several", False),
        ("There is dogs.", "dogs", False),
        ("There is bread.", "bread", True),
        ("There is furniture.", "furniture", True),
        ("There is graffiti on the wall.", "graffiti", True),
        ("There is fish on a plate.", "fish", True),
        ("There is both a dog and a cat.", "both", True),
        ("There is an SUV.", "an SUV", True),
        ("There is an dog.", "an dog", False),
        ("There is a umbrella.", "a umbrella", False),
        ("There is an old dog.", "an old", True),
        ("There is a unicorn.", "a unicorn", True),
        ("There are also dog.", "dog", False),
        ("There are dogs.", "dogs", True),
        ("There are dog beds.", "dog", True),
        ("There is a man with a a dog.", "a a", False),
        ("There is a bowl There is a cup.", "a bowl", False),
        ("The.", "The", False),
        (". People sit there.", ".", False),
        ("A cup lies nearby.", "A cup", True),
    ],
)
def test_replacement_is_a_noun_phrase(sentence: str, new: str, expected: bool) -> None:
    assert is_grammatical(sentence, sentence.index(new)) is expected


def test_sentence_without_new_text_is_not_grammatical() -> None:
    assert not is_grammatical("There is also", len("There is also"))
