"""Extraction of the objects that a caption mentions. Numbers of the three variants are not comparable.

- `original`: utils/chair.py of LisaAnne/Hallucination and its stand-alone copies, with the singular of pattern and the
  tokens of nltk 3.2.5.
- `lemma`: chair.py of shikiw/OPERA and its successors, with WordNet lemmas by part of speech and the tokens of nltk
  3.8.1. It needs data of nltk.
- `fixed`: our own, to be reported beside the others and never instead. See `build_fixed_extractor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.benchmarks.chair.singular_forms import singularize
from eval.benchmarks.chair.tokenizer import tokenize
from eval.benchmarks.chair.vocabulary import DOUBLE_WORDS, ObjectVocabulary, merge_double_words
from eval.benchmarks.chair.word_rules import NLTK_3_2_5, NLTK_3_8_1, WordRules
from eval.benchmarks.nltk_data import require_packages

Variant = Literal["original", "lemma", "fixed"]


@dataclass(frozen=True)
class Mention:
    """An object that a caption mentions.

    Attributes:
        word: The word in the singular, after double words are merged.
        node: The category.
        first: Index of the first token.
        last: Index of the last token.
    """

    word: str
    node: str
    first: int
    last: int


@dataclass(frozen=True)
class CaptionObjects:
    """All objects that a caption mentions.

    Attributes:
        tokens: Tokens of the caption.
        length: Number of tokens after double words are merged, as papers report it.
        mentions: The mentions, in order.
    """

    tokens: tuple[str, ...]
    length: int
    mentions: tuple[Mention, ...]


Extractor = Callable[[str], CaptionObjects]
BaseForms = Callable[[Sequence[str]], list[str]]


def build_extractor(variant: Variant, vocabulary: ObjectVocabulary) -> Extractor:
    """Build the extractor of a variant. Missing data of nltk for `lemma` raise `EvaluationError`.

    Args:
        variant: The variant.
        vocabulary: The table of synonyms.

    Returns:
        A function from a caption to its objects.
    """
    if variant == "fixed":
        return build_fixed_extractor(vocabulary)
    base_forms = _build_lemmatizer() if variant == "lemma" else _singularize_all
    rules = NLTK_3_8_1 if variant == "lemma" else NLTK_3_2_5
    return lambda caption: _extract(caption, rules, base_forms, vocabulary)


def _extract(caption: str, rules: WordRules, base_forms: BaseForms, vocabulary: ObjectVocabulary) -> CaptionObjects:
    tokens = tokenize(caption, rules)
    words = merge_double_words(base_forms(tokens))
    distinct = {word for word, _, _ in words}
    # "The seat of the toilet" is not a chair.
    ignored = "seat" if {"toilet", "seat"} <= distinct else None
    mentions = [
        Mention(word, vocabulary[word], first, last)
        for word, first, last in words
        if word in vocabulary and word != ignored
    ]
    return CaptionObjects(tuple(tokens), len(words), tuple(mentions))


def _singularize_all(words: Sequence[str]) -> list[str]:
    return [singularize(word) for word in words]


WORDNET_TAGS = {"J": "a", "V": "v", "R": "r"}
"""First letter of a Penn Treebank tag to WordNet's part of speech. All other tags are nouns."""


def _build_lemmatizer() -> BaseForms:
    import nltk
    from nltk.stem import WordNetLemmatizer

    require_packages(("wordnet", "averaged_perceptron_tagger_eng"), "the variant lemma")
    lemmatize = WordNetLemmatizer().lemmatize

    def lemmatize_all(words: Sequence[str]) -> list[str]:
        return [lemmatize(word, pos=WORDNET_TAGS.get(tag[:1], "n")) for word, tag in nltk.pos_tag(list(words))]

    return lemmatize_all


IRREGULAR = {
    "men": "man",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
    "teeth": "tooth",
    "feet": "foot",
}
ENDINGS = (("ies", "y"), ("ies", "ie"), ("ves", "f"), ("ves", "fe"), ("ves", "ve"), ("es", ""), ("es", "e"), ("s", ""))
NEGATIONS = frozenset({"no", "not", "n't", "without", "neither", "nor"})
FILLERS = frozenset({"a", "an", "any", "the", "single", "other", "visible", "sign", "of"})
CONJUNCTIONS = frozenset({"or", "nor"})


def build_fixed_extractor(vocabulary: ObjectVocabulary) -> Extractor:
    """Build the extractor of the variant `fixed`, without the errors of the original.

    Differences to the original:

    - The singular is searched among the words of the table. So buses, ties and glasses are found, no word is mangled,
      and a bus counts.
    - The words of the table are stripped and in lower case (motor bike, cheesecake, iPhone). Words of two and three
      parts are matched as such (stove top oven), also with a hyphen.
    - A negated object is not a mention: "no dog", "without a cat or a dog", "isn't any car".
    - Long dashes, asterisks and quotation marks are no part of a word: "**dog**", "'dog'".

    Statues, paintings and colours (an orange shirt) count as in the original.

    Args:
        vocabulary: The table of synonyms.

    Returns:
        A function from a caption to its objects.
    """
    nodes = {" ".join(word.lower().split()): node for word, node in vocabulary.items()}
    # Double words may mean another word (a baby bear is a bear), or for no object.
    phrases = {**{pair: nodes.get(word) for pair, word in DOUBLE_WORDS.items()}, **nodes}
    parts = {part for phrase in phrases for part in phrase.split()}

    def extract(caption: str) -> CaptionObjects:
        tokens = tokenize(caption)
        words = [_find_base_form(token, parts, nodes) for token in tokens]
        mentions: list[Mention] = []
        negated: set[int] = set()  # indices of the last tokens of negated objects
        length = index = 0
        while index < len(words):
            phrase, size = _find_longest_phrase(words, index, phrases)
            node = phrases.get(phrase)
            if node is not None and _is_negated(tokens, index, negated):
                negated.add(index + size - 1)
            elif node is not None:
                mentions.append(Mention(phrase, node, index, index + size - 1))
            length += 1
            index += size
        if any(mention.node == "toilet" for mention in mentions):
            mentions = [mention for mention in mentions if mention.word != "seat"]
        return CaptionObjects(tuple(tokens), length, tuple(mentions))

    return extract


def _find_base_form(token: str, parts: set[str], nodes: Mapping[str, str]) -> str:
    """Return the word of the table that a token is a form of, or the token."""
    if token in parts:
        return token
    for variant in (token.replace("-", " "), token.replace("-", "")):
        if variant in nodes:
            return variant
    for plural, singular in IRREGULAR.items():  # also inside words: policemen
        if token.endswith(plural) and token[: -len(plural)] + singular in parts:
            return token[: -len(plural)] + singular
    for ending, replacement in ENDINGS:
        if token.endswith(ending) and token[: -len(ending)] + replacement in parts:
            return token[: -len(ending)] + replacement
    return token


def _find_longest_phrase(words: Sequence[str], index: int, phrases: Mapping[str, str | None]) -> tuple[str, int]:
    for size in (3, 2):
        phrase = " ".join(words[index : index + size])
        if phrase in phrases and index + size <= len(words):
            return phrase, size
    return words[index], 1


def _is_negated(tokens: Sequence[str], index: int, negated: set[int]) -> bool:
    """Return whether the tokens before a mention negate it, or link it to a negated mention."""
    for before in range(index - 1, -1, -1):
        if tokens[before] in NEGATIONS - CONJUNCTIONS:
            return True
        if before in negated:
            return before < index - 1
        if tokens[before] not in FILLERS | CONJUNCTIONS:
            return False
    return False
