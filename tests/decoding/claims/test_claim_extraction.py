"""The claim extractor on sentences with claims written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from decoding.claims import claim_extraction
from decoding.claims.claim_extraction import find_claims, find_claims_after
from decoding.claims.noun_phrases import split_words
from decoding.claims.nouns import find_noun, pluralize, singularize, with_article
from decoding.claims.questions import build_question
from decoding.claims.sentences import find_sentence_end

SENTENCES = Path(__file__).with_name("sentences.txt")
UNSEEN_SENTENCES = Path(__file__).with_name("sentences_unseen.txt")


@dataclass(frozen=True)
class Example:
    """A sentence and the offsets at which its claims end."""

    text: str
    ends: frozenset[int]


def load_examples(file: Path) -> list[Example]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    examples = []
    for text, _, listed in (line.partition("|") for line in lines):
        ends, start = set(), 0
        for thing in filter(None, (thing.strip() for thing in listed.split(";"))):
            start = text.index(thing, start) + len(thing)
            ends.add(start)
        examples.append(Example(text.strip(), frozenset(ends)))
    return examples


def measure(file: Path) -> tuple[float, float, list[str]]:
    """Return precision, recall and errors over the sentences of a file. A claim is right if it ends where one does."""
    right = found = wanted = 0
    errors = []
    for example in load_examples(file):
        ends = {claim.end for claim in find_claims(example.text)}
        right, found, wanted = right + len(ends & example.ends), found + len(ends), wanted + len(example.ends)
        if ends != example.ends:
            extra, missed = (
                sorted(example.text[:end].split()[-1] for end in each)
                for each in (ends - example.ends, example.ends - ends)
            )
            errors.append(f"{example.text}  extra {extra}  missed {missed}")
    return right / found, right / wanted, errors


def test_precision_and_recall_exceed_a_threshold() -> None:
    """At the first run, before anything was changed for these sentences: precision 0.939, recall 0.942.

    After the rules were changed for the errors of that run, and of reviews: 0.963 and 0.963.
    """
    precision, recall, errors = measure(SENTENCES)
    assert len(load_examples(SENTENCES)) >= 200
    assert precision >= 0.95, errors
    assert recall >= 0.95, errors


def test_unseen_sentences_keep_precision_and_recall() -> None:
    """Precision 0.956 and recall 0.956, at first 0.949 and 0.956. No rule is changed for these sentences."""
    precision, recall, errors = measure(UNSEEN_SENTENCES)
    assert len(load_examples(UNSEEN_SENTENCES)) >= 120
    assert precision >= 0.94, errors
    assert recall >= 0.94, errors


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("There are two people.", "Is there a person in the image?"),
        ("There is an umbrella.", "Is there an umbrella in the image?"),
        ("A plate of rice is there.", "Is there rice in the image?"),
        ("Here are wine glasses.", "Is there a wine glass in the image?"),
        ("There is a potted plant.", "Is there a potted plant in the image?"),
    ],
)
def test_question_names_the_claim(text: str, question: str) -> None:
    assert build_question(find_claims(text)[-1]) == question


def test_build_question_fills_the_template() -> None:
    (claim,) = find_claims("There is a dog.")
    assert build_question(claim, "Can you see {claim} here?") == "Can you see a dog here?"


def test_offsets_count_code_points() -> None:
    text = "Na\u00efve caf\u00e9 \U0001f600: there is a dog."
    (*_, claim) = find_claims(text)
    assert text[claim.start : claim.end] == "dog"


def test_a_phrase_begins_with_its_article_and_adjectives() -> None:
    text = "There is a large brown dog."
    (claim,) = find_claims(text)
    assert text[claim.phrase_start : claim.end] == "a large brown dog"


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("There is a small, brown dog.", ["dog"]),
        ("The key elements are a dog and a cat.", ["dog", "cat"]),
        ("The clock shows 3:15 p.m. on a 3D cake.", ["clock", "cake"]),
        ("It has a stainless steel sink in it.", ["stainless steel sink"]),
        ('A sign reads "Stop for Dogs" in red.', ["sign"]),
        ('"There is a dog."', ["dog"]),
        ("The room is devoid of people.", []),
        ("The street is empty of cars. A dog runs.", ["dog"]),
        ("There are items such as cups and bowls.", ["cups", "bowls"]),
        ("There are objects like a lamp.", ["lamp"]),
        ("The bench looks like a boat.", ["bench"]),
        ("He wears a **red coat** and a hoodie.", ["coat", "hoodie"]),
        ("Es ist ein Hund auf der Bank. There is a cat.", ["cat"]),
        ("There is a cat. Es ist ein Hund mit dem Mann.", ["cat"]),
        ("No. There is a cat.", ["cat"]),
    ],
)
def test_claims_of_usual_descriptions_are_found(text: str, things: list[str]) -> None:
    assert [claim.text for claim in find_claims(text)] == things


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("There is a laptop, keyboard, and mouse.", ["a laptop", "a keyboard", "a mouse"]),
        ("There is a bowl of soup, bread and a fork.", ["a bowl", "soup", "bread", "a fork"]),
        ("1. Chair\n2. Table", ["a chair", "a table"]),
        ("The water is calm, and a man wears sunglasses.", ["water", "a man", "a sunglasses"]),
    ],
)
def test_questions_have_articles_of_count_nouns(text: str, questions: list[str]) -> None:
    assert [build_question(claim, "{claim}") for claim in find_claims(text)] == questions


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("An orange cat sits there.", "An orange cat"),
        ("There is a very large dog.", "a very large dog"),
        ("There is a small, brown dog.", "a small, brown dog"),
    ],
)
def test_a_phrase_begins_before_colours_degrees_and_commas(text: str, phrase: str) -> None:
    (claim,) = find_claims(text)
    assert text[claim.phrase_start : claim.end] == phrase


@pytest.mark.parametrize(
    ("plural_form", "singular_form"),
    [("buses", "bus"), ("knives", "knife"), ("people", "person"), ("horses", "horse"), ("leaves", "leaf")],
)
def test_singular_and_plural_are_inverse(plural_form: str, singular_form: str) -> None:
    assert singularize(plural_form) == singular_form
    assert pluralize(singular_form) == plural_form
    assert singularize(singular_form) is None


def test_with_article_follows_the_sound() -> None:
    assert [with_article(noun) for noun in ("hour glass", "unicorn", "umbrella")] == [
        "an hour glass",
        "a unicorn",
        "an umbrella",
    ]


def test_unknown_words_are_no_nouns() -> None:
    assert find_noun("zzyzx") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A cat. A dog.", "A cat."),
        ("A cat.", None),
        ("Mr. Smith waits. He smiles.", "Mr. Smith waits."),
        ("It is 3.5 m tall. Yes.", "It is 3.5 m tall."),
        ("First line\nsecond", "First line\n"),
        ('He says "Stop!" Then he goes.', 'He says "Stop!"'),
        ("1. A cat. 2. A dog.", "1. A cat."),
        ("Really?! Yes", "Really?!"),
        ("No. There is a cat.", "No."),
        ("It is no. 5 here. Yes", "It is no. 5 here."),
    ],
)
def test_sentence_end_is_found(text: str, sentence: str | None) -> None:
    end = find_sentence_end(text)
    assert (None if end is None else text[:end]) == sentence


def test_claims_of_the_last_sentence_are_those_of_the_whole_answer() -> None:
    text = " ".join(["There is a dog.", "Two cats sit.", "No bird.", "Hier steht ein Hund."] * 30)
    start, found = 0, 0
    while (end := find_sentence_end(text, start)) is not None:
        claims = find_claims_after(text[:end], start)
        assert claims == [claim for claim in find_claims(text[:end]) if claim.start >= start]
        start, found = end, found + len(claims)
    assert found == 60


def test_the_time_for_a_sentence_does_not_grow_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def record(text: str) -> Any:
        read.append(len(text))
        return split_words(text)

    monkeypatch.setattr(claim_extraction, "split_words", record)
    answer = "There is a dog. " * 1000
    assert [claim.start for claim in find_claims_after(answer + "There is a cat.", len(answer))] == [len(answer) + 11]
    assert max(read) < 1100
