"""Find the claims of a text: noun phrases that state that something is in the image.

The rules read English prose. Text in another language has no claims, and so has an answer of one word.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from decoding.claims.noun_phrases import (
    AUXILIARIES,
    DETERMINERS,
    FUNCTION_WORDS,
    MIN_VERB_SHARE,
    PRONOUNS,
    NounMatch,
    Word,
    find_phrase_begin,
    find_phrases,
    is_before_noun,
    is_determiner,
    split_words,
)
from decoding.claims.nouns import PLURAL_ONLY, find_noun
from decoding.claims.sentences import find_sentence_end
from decoding.claims.words import load_words

NEGATIONS = load_words("negations")
PHRASE_NEGATIONS = frozenset({"no", "without", "neither", "nor"})
COMPARISONS = load_words("comparisons")
CLAUSE_ENDS = load_words("clause_ends") | set(".!?;:,\n")
NOT_KINDS = load_words("not_kinds")
FOREIGN = load_words("foreign")
AMBIGUOUS = load_words("ambiguous")
MASS = load_words("mass_nouns")
LIST_STARTS = frozenset("\n:;-•.)")  # before the first word of a list's member
QUOTATION = re.compile(r"(?<=[\w,:] )(?:[\"“][^\"“”\n]{1,60}[\"”]|'[^'\n]{1,60}'(?=[\s.,;:!?]))")
NEGATION_REACH = 12  # words
CONTEXT = 1000  # characters before a sentence that are read with it


@dataclass(frozen=True, slots=True)
class Claim:
    """A noun phrase that states that something is in the image.

    Attributes:
        text: The phrase as it is in the answer, without article and adjectives.
        start: Offset of its first character in the answer, by code point.
        end: Offset after its last character.
        noun: The phrase in the singular, lower case.
        is_plural: Whether the answer has it in the plural.
        is_bare: Whether a question has it without an article, as `rice`. It is a mass noun, or it is in the answer
            without article, number and possessive.
        phrase_start: Offset at which the noun phrase begins, with its article and adjectives.
    """

    text: str
    start: int
    end: int
    noun: str
    is_plural: bool
    is_bare: bool
    phrase_start: int


def find_claims(text: str) -> list[Claim]:
    """Find the claims of an answer, or of a part of it that ends with a sentence.

    Args:
        text: English prose. Offsets count from its beginning.

    Returns:
        The claims in the order of the text. The same thing may be claimed several times.
    """
    words = split_words(text)
    if sum(word.is_word for word in words) < 2:
        return []
    is_english_text = is_english(words) is not False
    ends = list(iter_sentence_ends(text))
    bounds = [0, *(bisect_left(words, end, key=lambda word: word.start) for end in ends)]
    is_english_sentence = [is_english(words[first:last]) for first, last in pairwise(bounds)]
    quotations = [found.span() for found in QUOTATION.finditer(text)]
    claims: list[Claim] = []
    previous: tuple[Claim, int] | None = None  # the claim before, and the index after its last word
    for begin, phrase in find_phrases(words):
        claim = build_claim(text, words, begin, phrase)
        if claim.is_bare and is_count_noun_in_list(words, claim, phrase, previous):
            claim = replace(claim, is_bare=False)
        previous = claim, phrase[-1].end
        is_sentence_english = is_english_sentence[bisect_right(ends, claim.start)]
        if not (is_english_text if is_sentence_english is None else is_sentence_english):
            continue
        is_quoted = any(start < claim.start < end for start, end in quotations)
        if not is_quoted and not is_negated(words, phrase[0].start) and not is_compared(words, phrase[0].start):
            claims.append(claim)
    return claims


def find_claims_after(text: str, start: int) -> list[Claim]:
    """Find the claims of the last sentence of a growing answer.

    Sentences of the `CONTEXT` characters before it are read as well: they tell the language of a short sentence, and
    where a quotation begins. Older ones are not, so that the time for an answer grows with its length only.

    Args:
        text: The answer so far. Offsets count from its beginning.
        start: Where its last sentence begins.

    Returns:
        The claims in the order of the text.
    """
    begin = 0
    if start > CONTEXT:
        end = find_sentence_end(text, start - CONTEXT)
        begin = start if end is None else min(end, start)
    return [
        replace(claim, start=claim.start + begin, end=claim.end + begin, phrase_start=claim.phrase_start + begin)
        for claim in find_claims(text[begin:])
        if claim.start + begin >= start
    ]


def iter_sentence_ends(text: str) -> Iterator[int]:
    """Yield the offset after each sentence of a text, and after the rest."""
    end = find_sentence_end(text)
    while end is not None and end < len(text):
        yield end
        end = find_sentence_end(text, end)
    yield len(text)


def is_english(words: list[Word]) -> bool | None:
    """Whether words are English: more of English's function words than of other languages'.

    Returns:
        None for fewer than two words, or without a function word or an accent.
    """
    lower = [word.lower for word in words if word.is_word]
    if len(lower) < 2:
        return None
    english = sum(word in FUNCTION_WORDS and word not in AMBIGUOUS for word in lower)
    foreign = sum(word in FOREIGN and word not in AMBIGUOUS for word in lower)
    accented = sum(not word.isascii() for word in lower)
    return english > foreign + accented // 2 if english or foreign or accented else None


def is_negated(words: list[Word], first: int) -> bool:
    """Whether the phrase that begins at a word follows a negation in the same clause."""
    for at in range(first - 1, max(-1, first - NEGATION_REACH), -1):
        word = words[at].lower
        if word in NEGATIONS:
            if word == "not" and at + 1 < len(words) and words[at + 1].lower == "only":
                return False
            if word in ("free", "devoid", "empty"):
                if words[at + 1].lower in ("of", "from"):
                    return True
                continue
            if word in PHRASE_NEGATIONS and any(is_finite_verb(words, after) for after in range(at + 1, first)):
                return False
            return not (word == "no" and words[at + 1].text == ",")
        if word in CLAUSE_ENDS and not (word == "," and is_list(words, at, first)):
            return False
        if word in ("there", "it") and at + 1 < first and words[at + 1].lower in AUXILIARIES:
            return any(words[after].lower in NEGATIONS for after in range(at + 1, first))
    return False


def is_finite_verb(words: list[Word], at: int) -> bool:
    """Whether a word ends the phrase that `no` or `without` negates."""
    found = find_noun(words[at].lower)
    is_verb = (
        found is not None and found[0].verb >= MIN_VERB_SHARE and words[at - 1].lower not in DETERMINERS | {",", "or"}
    )
    return words[at].lower in AUXILIARIES or is_verb


def is_list(words: list[Word], comma: int, first: int) -> bool:
    """Whether a comma separates list items, as in `no dogs, cats or birds`."""
    return not any(words[at].lower in AUXILIARIES | PRONOUNS for at in range(comma + 1, first))


def is_compared(words: list[Word], first: int) -> bool:
    """Whether the phrase only describes an appearance, as in "looks like a boat"."""
    at = first - 1
    while at >= 0 and words[at].lower not in COMPARISONS and is_before_noun(words[at].lower):
        at -= 1
    if at < 0 or words[at].lower not in COMPARISONS:
        return False
    before = words[at - 1].lower if at else ""
    if words[at].lower == "as":  # "such as" gives an example
        return before == "same" or before.endswith(("ed", "es"))
    found = find_noun(before) if before else None
    is_example = found is not None and found[1] and found[0].verb < MIN_VERB_SHARE
    return words[at].lower != "like" or not is_example  # "items like a lamp" gives an example


def build_claim(text: str, words: list[Word], begin: int, phrase: list[NounMatch]) -> Claim:
    """Make the claim of a noun phrase, with the participle before it.

    Args:
        text: The text.
        words: Its words.
        begin: Index of the first word of the phrase that is no plain adjective.
        phrase: Its nouns.

    Returns:
        The claim.
    """
    first, head = phrase[0].start, phrase[-1]
    modifiers = [words[at].lower for at in range(first, head.start)]
    previous = words[first - 1] if first else None
    if previous is not None and previous.end + 1 == words[first].start and is_participle(previous.lower):
        first, modifiers = first - 1, [previous.lower, *modifiers]
    start, end = words[first].start, words[head.end - 1].end
    noun = " ".join([*modifiers, head.noun.text])
    begin = find_phrase_begin(words, min(begin, first))
    has_determiner = is_determiner(words[begin].lower) and begin < first
    is_bare = not head.is_plural and noun not in PLURAL_ONLY and (not has_determiner or noun in MASS)
    return Claim(text[start:end], start, end, noun, head.is_plural, is_bare, words[begin].start)


def is_count_noun_in_list(
    words: list[Word], claim: Claim, phrase: list[NounMatch], previous: tuple[Claim, int] | None
) -> bool:
    """Whether a noun without an article is a member of a list, as in "a laptop, keyboard, and mouse" or "1. Chair"."""
    if claim.noun in MASS:
        return False
    at = phrase[0].start
    while at and words[at - 1].start >= claim.phrase_start:
        at -= 1
    first = at
    while at and words[at - 1].lower in (",", "and", "or"):
        at -= 1
    if at < first and previous is not None and previous[1] == at:
        return not previous[0].is_bare
    return first == 0 or words[first - 1].text in LIST_STARTS


def is_participle(word: str) -> bool:
    """Whether a word before a noun denotes a kind of thing, as `potted` or `stuffed`."""
    return word.endswith("ed") and len(word) > 4 and word not in NOT_KINDS and find_noun(word) is None
