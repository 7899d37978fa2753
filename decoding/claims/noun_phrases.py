"""Find the noun phrases of a text: a chunker over the noun table (`decoding/claims/nouns.py`), without a tagger."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from decoding.claims.nouns import MAX_ENTRY_WORDS, Noun, find_noun
from decoding.claims.words import load_words

WORD = re.compile(r"['’]s\b|n['’]t\b|[^\W\d_]+?(?=n['’]t\b)|[^\W\d_]+(?:-[^\W\d_]+)*|\d+(?:[.,]\d+)*|\n|[^\s*_`#]")
SINGULAR = load_words("singular_determiners")
DETERMINERS = load_words("determiners")
PREPOSITIONS = load_words("prepositions")
AUXILIARIES = load_words("auxiliaries")
PRONOUNS = load_words("pronouns")
OTHER_WORDS = load_words("other_function_words")
FUNCTION_WORDS = DETERMINERS | PREPOSITIONS | AUXILIARIES | PRONOUNS | OTHER_WORDS
PORTIONS = load_words("portions")
DEGREES = load_words("degrees")
MODALS = frozenset({"can", "will", "could"})
PAST_FORMS = frozenset({"cast", "cut", "hit", "put", "read", "set", "shut", "split", "spread"})  # are base forms, too
# Shares of `Noun`, 0 to 9.
MIN_MODIFIER_SHARE = 3  # of adjectives, at which the first noun of a compound modifies as an adjective does
MIN_ADJECTIVE_SHARE = 5  # at which a word is rather an adjective. A match of the noun table is one only above it
MIN_VERB_SHARE = 5  # at which a word is rather a verb


@dataclass(frozen=True, slots=True)
class Word:
    """A word, number or punctuation mark with its offset."""

    text: str
    start: int

    @property
    def lower(self) -> str:
        """The text in lower case, with a straight apostrophe."""
        return self.text.lower().replace("’", "'")

    @property
    def end(self) -> int:
        """Offset after its last character."""
        return self.start + len(self.text)

    @property
    def is_word(self) -> bool:
        """Whether it is a word rather than a number or punctuation mark."""
        return self.text[0].isalpha()


@dataclass(frozen=True, slots=True)
class NounMatch:
    """An entry of the noun table at some words of a text.

    Attributes:
        noun: The entry.
        is_plural: Whether the text has it in the plural.
        start: Index of its first word.
        end: Index after its last word.
    """

    noun: Noun
    is_plural: bool
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Split a text into words, numbers and punctuation."""
    return [Word(found[0], found.start()) for found in WORD.finditer(text)]


def find_phrases(words: list[Word]) -> Iterator[tuple[int, list[NounMatch]]]:
    """Find the noun phrases that name things.

    Adjectives are not part of a phrase, but participles are: a `potted plant` is a kind of plant.

    Args:
        words: The words of the text.

    Yields:
        The index of the first word that is no plain adjective, and the nouns of the phrase: at most one modifier, and
        the head. The word is a noun that serves as an adjective, as in "an orange cat", or the first noun.
    """
    at = 0
    while at < len(words):
        match = find_noun_at(words, at)
        if match is None:
            at += 1
            continue
        phrase = [match]
        while (follower := find_noun_at(words, phrase[-1].end, phrase[-1])) is not None:
            phrase.append(follower)
        at = phrase[-1].end
        phrase = drop_abstract_head(phrase)
        begin = phrase[0].start if phrase else at
        # Colours and other adjectives that are nouns, too, are modifiers that a question does not need.
        while (
            len(phrase) > 1 and phrase[0].noun.adjective >= MIN_MODIFIER_SHARE and phrase[0].end == phrase[0].start + 1
        ):
            phrase.pop(0)
        # "holding ski poles": the participle is the verb of the phrase.
        while (
            len(phrase) > 1
            and phrase[0].noun.text.endswith("ing")
            and phrase[0].noun.verb + 3 > phrase[0].noun.concrete
        ):
            phrase.pop(0)
            begin = phrase[0].start
        if not phrase or not phrase[-1].noun.is_thing or is_adjective_here(words, phrase[-1]):
            continue
        if phrase[-1].noun.text not in PORTIONS or at == len(words) or words[at].lower != "of":
            yield begin, phrase[-2:]


def drop_abstract_head(phrase: list[NounMatch]) -> list[NounMatch]:
    """Drop a head that names no thing, as in "a man riding" and "a kitchen area".

    "The key elements" and "an orange colour" name no thing at all: their first word is an adjective.

    Args:
        phrase: Nouns that form a compound.

    Returns:
        The nouns up to one that names a thing, or none.
    """
    is_activity = True
    while len(phrase) > 1 and not phrase[-1].noun.is_thing:
        is_activity = is_activity and phrase[-1].noun.text.endswith("ing")
        phrase = phrase[:-1]
    return phrase if is_activity or len(phrase) > 1 or phrase[0].noun.adjective < MIN_MODIFIER_SHARE else []


def find_noun_at(words: list[Word], at: int, before: NounMatch | None = None) -> NounMatch | None:
    """Find the longest entry of the noun table that begins at a word and is used as a noun there.

    Args:
        words: The words of the text.
        at: Index of the word.
        before: The noun that ends right before it, if there is one: the two would form a compound.

    Returns:
        The entry, or None.
    """
    for length in range(min(MAX_ENTRY_WORDS, len(words) - at), 0, -1):
        span = words[at : at + length]
        if length == 1 and len(span[0].text) == 1:  # "3:15 p.m.", "a 3D cube"
            continue
        if not all(word.is_word for word in span) or is_function_word(words, at):
            continue
        if any(after.start != word.end + 1 for word, after in pairwise(span)):
            continue
        found = find_noun(" ".join(word.lower for word in span))
        if found is None:
            continue
        match = NounMatch(found[0], found[1], at, at + length)
        if length > 1 and is_verb_phrase(words, match):
            continue
        if length > 1 or is_noun_here(words, match, before):
            if before is None or is_compound(before, match):
                return match
            return None
    return None


def is_function_word(words: list[Word], at: int) -> bool:
    """Whether a word is a function word. After an article, `can` is a noun."""
    is_modal_noun = words[at].lower in MODALS and at > 0 and words[at - 1].lower in SINGULAR | {"the"}
    return words[at].lower in FUNCTION_WORDS and not is_modal_noun


def is_verb_phrase(words: list[Word], match: NounMatch) -> bool:
    """Whether the last word of an entry is the verb, as in "the bus stops at the corner"."""
    last = find_noun(words[match.end - 1].lower)
    if not match.is_plural or last is None or last[0].verb < MIN_VERB_SHARE:
        return False
    previous = words[match.start - 1].lower if match.start else ""
    following = words[match.end].lower if match.end < len(words) else ""
    return previous in SINGULAR or (previous == "the" and following in PREPOSITIONS)


def is_compound(first: NounMatch, second: NounMatch) -> bool:
    """Whether two adjacent nouns are one thing, as `kitchen counter`: plurals only modify where they are abstract."""
    return not first.is_plural or not first.noun.is_thing


def is_noun_here(words: list[Word], match: NounMatch, before: NounMatch | None) -> bool:
    """Whether a word that may be a verb or an adjective is a noun at its place."""
    noun = match.noun
    previous = words[match.start - 1].lower if match.start else ""
    following = words[match.end].lower if match.end < len(words) else ""
    if before is not None and not before.is_plural and not match.is_plural and follows_article(words, before.start):
        # No verb: that would be "sinks" after "a stainless steel".
        return not noun.text.endswith("ing") and (noun.text not in PAST_FORMS or following not in FUNCTION_WORDS)
    if before is not None:  # "a man walks", "the bus stops": a verb; "a bus stop": a noun
        if noun.text.endswith("ing") and not noun.is_thing:
            return False
        if match.is_plural and noun.verb >= 2 and (following in DETERMINERS or follows_noun(words, match.end)):
            return False  # "a lamp lights the table"
        return noun.verb < MIN_VERB_SHARE or (not match.is_plural and before.noun.concrete < 9 and noun.verb < 9)
    if previous in ("to", "not", "n't") or previous in PRONOUNS - {"her", "it"} or previous in MODALS:
        return noun.verb < 2
    if previous in DETERMINERS or previous.isdigit() or previous == "'s":
        return noun.adjective <= MIN_ADJECTIVE_SHARE or match.is_plural or not precedes_noun(words, match.end)
    subject = find_noun(previous) if previous not in FUNCTION_WORDS and previous else None
    if subject is not None and subject[1] and not match.is_plural:  # "pedestrians cross the street"
        return noun.verb < 2
    if previous in AUXILIARIES and noun.text.endswith("ing"):  # "is casting"
        return False
    if noun.verb >= MIN_VERB_SHARE:
        if following in AUXILIARIES or (following in (",", "and") and match.is_plural):
            return True
        # After an adjective or a preposition; after a noun or at the beginning it is rather a verb.
        return bool(previous) and previous not in OTHER_WORDS - {"and", "or"} and is_adjective_or_no_noun(previous)
    return True


def is_adjective_or_no_noun(word: str) -> bool:
    found = find_noun(word)
    return found is None or found[0].adjective >= MIN_ADJECTIVE_SHARE


def is_adjective_here(words: list[Word], match: NounMatch) -> bool:
    """Whether a noun that is mostly an adjective is one here: in the singular and not directly after a determiner."""
    previous = words[match.start - 1].lower if match.start else ""
    return match.noun.adjective > MIN_ADJECTIVE_SHARE and not match.is_plural and previous not in DETERMINERS


def follows_article(words: list[Word], first: int) -> bool:
    """Whether the noun phrase that a word belongs to begins with `a`, `an` or another determiner of a single thing."""
    return words[find_phrase_begin(words, first)].lower in SINGULAR


def precedes_noun(words: list[Word], at: int) -> bool:
    """Whether a noun follows from a word on, after more adjectives and commas: "a small, brown dog"."""
    while at + 1 < len(words) and (words[at].text == "," or (words[at].is_word and is_adjective(words[at].lower))):
        at += 1
    return at < len(words) and words[at].lower not in FUNCTION_WORDS and follows_noun(words, at)


def follows_noun(words: list[Word], at: int) -> bool:
    return at < len(words) and words[at].is_word and find_noun(words[at].lower) is not None


def is_before_noun(word: str) -> bool:
    return word in DETERMINERS or is_adjective(word)


def is_adjective(word: str) -> bool:
    found = find_noun(word)
    return word not in FUNCTION_WORDS and (found is None or found[0].adjective >= MIN_ADJECTIVE_SHARE)


def find_phrase_begin(words: list[Word], first: int) -> int:
    """Return the index of the first word of a noun phrase: its adjectives and determiners before word `first`."""
    at = first
    while at > 0:
        before = words[at - 1]
        is_comma = before.text == "," and at > 1 and words[at - 2].is_word and is_adjective(words[at - 2].lower)
        if not is_comma and not (before.is_word and (is_adjective(before.lower) or before.lower in DEGREES)):
            break
        at -= 1
    while at > 0 and is_determiner(words[at - 1].lower):
        at -= 1
    return at if is_determiner(words[at].lower) else first


def is_determiner(word: str) -> bool:
    return word in DETERMINERS or word.isdigit() or word == "'s"
