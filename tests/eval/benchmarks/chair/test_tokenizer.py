"""The tokens of nltk."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.chair.tokenizer import locate_tokens, tokenize
from eval.benchmarks.chair.word_rules import NLTK_3_2_5, NLTK_3_8_1, NLTK_3_10, WordRules
from tests.eval.cli_driver import ROOT

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


# text: tokens under the rules of nltk 3.2.5, 3.8.1 and 3.10, recorded from these versions
VERSIONS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "a bird\u2014a horse": (
        ["a", "bird\u2014a", "horse"],
        ["a", "bird\u2014a", "horse"],
        ["a", "bird", "\u2014", "a", "horse"],
    ),
    "1\u20132 dogs": (["1\u20132", "dogs"], ["1\u20132", "dogs"], ["1", "\u2013", "2", "dogs"]),
    "a **dog**.": (["a", "**dog**", "."], ["a", "*", "*", "dog", "*", "*", "."], ["a", "*", "*", "dog", "*", "*", "."]),
    "the 'dog' sign": (
        ["the", "'dog", "'", "sign"],
        ["the", "'dog", "'", "sign"],
        ["the", "'", "dog", "'", "sign"],
    ),
    "'a dog'": (["'a", "dog", "'"], ["'", "a", "dog", "'"], ["'", "a", "dog", "'"]),
    "dog.. cat": (["dog..", "cat"], ["dog", "..", "cat"], ["dog", "..", "cat"]),
    "dog.... cat": (["dog", "...", ".", "cat"], ["dog", "....", "cat"], ["dog", "....", "cat"]),
    "a `dog`": (["a", "`dog`"], ["a", "`", "dog", "`"], ["a", "`", "dog", "`"]),
    "the \u201cdog.\u201d a cat": (
        ["the", "\u201c", "dog.", "\u201d", "a", "cat"],
        ["the", "\u201c", "dog.", "\u201d", "a", "cat"],
        ["the", "\u201c", "dog", ".", "\u201d", "a", "cat"],
    ),
    "dog.\u00a0a cat.\u00a0b": (
        ["dog", ".", "a", "cat", ".", "b"],
        ["dog", ".", "a", "cat", ".", "b"],
        ["dog", ".", "a", "cat", ".", "b"],
    ),
}


@pytest.mark.parametrize("text", VERSIONS, ids=repr)
def test_tokens_follow_the_version_of_nltk(text: str) -> None:
    assert tuple(tokenize(text, rules) for rules in (NLTK_3_2_5, NLTK_3_8_1, NLTK_3_10)) == VERSIONS[text]


@pytest.mark.parametrize("rules", [NLTK_3_2_5, NLTK_3_8_1, NLTK_3_10], ids=["3.2.5", "3.8.1", "3.10"])
@pytest.mark.parametrize("text", TOKENS, ids=repr)
def test_plain_captions_have_the_same_tokens_in_all_versions(text: str, rules: WordRules) -> None:
    assert tokenize(text, rules) == TOKENS[text]


def test_tokenize_does_not_import_nltk() -> None:
    """The tokens would change with the installed version."""
    use = "from eval.benchmarks.chair.tokenizer import tokenize; tokenize('A dog.')"
    code = f"import sys; {use}; sys.exit('nltk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@given(st.text(alphabet="aA .,'\"sdog-no\u00e9\u0130!?3", max_size=40))
def test_spans_contain_their_tokens(text: str) -> None:
    tokens = tokenize(text)
    for token, span in zip(tokens, locate_tokens(text, tokens), strict=True):
        if span is not None:
            assert text[slice(*span)].lower() in (token, '"')
