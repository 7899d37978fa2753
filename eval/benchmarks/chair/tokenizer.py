"""nltk.word_tokenize for English in lower case, without nltk and its data.

word_tokenize splits a text into sentences, because only the full stop at the end of a sentence is a token of its own.
It then splits sentences into words. Both parts are our own code, because those of nltk differ between its versions.
"""

from __future__ import annotations

from functools import lru_cache

from eval.benchmarks.chair.sentences import split_sentences
from eval.benchmarks.chair.word_rules import NLTK_3_10, WordRules


def tokenize(text: str, rules: WordRules = NLTK_3_10) -> list[str]:
    """Split a text into words and punctuation marks, in lower case as CHAIR does.

    Args:
        text: The text.
        rules: The rules of a version of nltk.

    Returns:
        The tokens.
    """
    sentences = split_sentences(text.lower(), rules.closing_quotes, rules.finds_runs_of_marks)
    return [word for sentence in sentences for word in _tokenize_sentence(sentence, rules)]


def locate_tokens(text: str, tokens: list[str]) -> list[tuple[int, int] | None]:
    """Find the position of each token in the text.

    Args:
        text: The text.
        tokens: The tokens of the text.

    Returns:
        Start and end of each token, None for a token that the tokeniser changed beyond recognition.
    """
    lowered = text.lower()
    if len(lowered) != len(text):  # Some capitals are two characters in lower case.
        return [None] * len(tokens)
    spans: list[tuple[int, int] | None] = []
    end = 0
    for token in tokens:
        # The tokeniser replaces straight double quotes by `` and ''.
        original = '"' if token in ("``", "''") and not lowered.startswith(token, end) else token
        start = lowered.find(original, end)
        spans.append(None if start < 0 else (start, start + len(original)))
        end = end if start < 0 else start + len(original)
    return spans


@lru_cache(maxsize=10_000)
def _tokenize_sentence(sentence: str, rules: WordRules) -> tuple[str, ...]:
    return tuple(rules.split_sentence(sentence))
