"""The tokens of nltk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.chair.tokenizer import locate_tokens, tokenize

TOKENS = {
    "A dog.": ["a", "dog", "."],
    "A dog. A cat.": ["a", "dog", ".", "a", "cat", "."],
    "a dog.a cat": ["a", "dog.a", "cat"],
    "It isn't a dog, it's a cat!": ["it", "is", "n't", "a", "dog", ",", "it", "'s", "a", "cat", "!"],
    'A "bus" (red).': ["a", "``", "bus", "''", "(", "red", ")", "."],
    "the dogs' bowls; the cat's": ["the", "dogs", "'", "bowls", ";", "the", "cat", "'s"],
    "on st. james st. there": ["on", "st.", "james", "st.", "there"],
    "dr. who vs. mr. man etc. end": ["dr.", "who", "vs.", "mr.", "man", "etc", ".", "end"],
    "at 5 p.m. a bus": ["at", "5", "p.m.", "a", "bus"],
    "there are 2. the dog": ["there", "are", "2.", "the", "dog"],
    "there are 2. 3 dogs": ["there", "are", "2", ".", "3", "dogs"],
    "wait... a dog": ["wait", "...", "a", "dog"],
    "cannot gonna": ["can", "not", "gon", "na"],
    "black-and-white t-shirt": ["black-and-white", "t-shirt"],
    "dog/cat & 3,000 $5": ["dog/cat", "&", "3,000", "$", "5"],
    "one\ntwo\n\nthree": ["one", "two", "three"],
    "": [],
    "  ": [],
    "\u201ccat\u201d": ["\u201c", "cat", "\u201d"],
}


@pytest.mark.parametrize("text", TOKENS, ids=repr)
def test_tokenize_splits_words_and_punctuation(text: str) -> None:
    assert tokenize(text) == TOKENS[text]


def test_tokens_equal_those_of_nltk() -> None:
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        pytest.skip("punkt_tab is not installed")
    for text in TOKENS:
        assert tokenize(text) == nltk.word_tokenize(text.lower())


@given(st.text(alphabet="aA .,'\"sdog-no\u00e9\u0130!?3", max_size=40))
def test_spans_contain_their_tokens(text: str) -> None:
    tokens = tokenize(text)
    for token, span in zip(tokens, locate_tokens(text, tokens), strict=True):
        if span is not None:
            assert text[slice(*span)].lower() in (token, '"')
