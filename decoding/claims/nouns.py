"""The noun table: which words name things, and the singular and plural forms of a word.

The table comes from WordNet 3.0 (`install/noun_table.py` writes it). `inflect` makes the forms.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import inflect

from decoding.claims.words import load_words

MAX_ENTRY_WORDS = 3

VISIBLE = load_words("visible")
IGNORED = load_words("ignored") | {"black and white"}
PLURAL_ONLY = load_words("plural_only")
CACHED_WORDS = 16_384  # of which the forms are kept; answers may hold any word
MIN_CONCRETE_SHARE = 3  # of a noun that names things


@dataclass(frozen=True, slots=True)
class Noun:
    """An entry of the noun table.

    Attributes:
        text: The lemma, lower case.
        concrete: Share of the noun's senses that are concrete, 0 to 9.
        verb: How often the word is a verb rather than a noun, 0 to 9.
        adjective: How often the word is an adjective rather than a noun, 0 to 9.
        is_place: Whether it names a place, as `kitchen`, which an image shows as a whole.
    """

    text: str
    concrete: int
    verb: int
    adjective: int
    is_place: bool

    @property
    def is_thing(self) -> bool:
        """Whether the noun names a thing in an image, rather than its setting or nothing visible."""
        is_concrete = self.concrete >= MIN_CONCRETE_SHARE and not self.is_place and self.text not in IGNORED
        return self.text in VISIBLE or is_concrete


@cache
def load_table() -> dict[str, str]:
    """Load the noun table: lemma -> the digits of its entry. To build all entries would take half a second."""
    text = gzip.decompress((files(__package__) / "nouns.txt.gz").read_bytes()).decode()
    return dict.fromkeys(VISIBLE | PLURAL_ONLY, "9000") | dict(line.split("\t") for line in text.splitlines())


@lru_cache(CACHED_WORDS)
def get_entry(lemma: str) -> Noun | None:
    """Return the entry of a lemma, or None."""
    digits = load_table().get(lemma)
    if digits is None:
        return None
    concrete, verb, adjective, place = map(int, digits)
    return Noun(lemma, concrete, verb, adjective, bool(place))


def find_noun(phrase: str) -> tuple[Noun, bool] | None:
    """Find a word or phrase in the noun table, in the singular or the plural.

    Returns:
        The entry and whether `phrase` is its plural; None where there is no entry.
    """
    phrase = phrase.lower()
    own, single = get_entry(phrase), singularize(phrase)
    of_single = None if single is None or phrase in PLURAL_ONLY else get_entry(single)
    # A plural with an entry of its own, as `glasses`: the singular wins where it is a thing as well.
    if of_single is not None and (of_single.is_thing or single in IGNORED or own is None or not own.is_thing):
        return of_single, True
    return None if own is None else (own, False)


@lru_cache(CACHED_WORDS)
def singularize(phrase: str) -> str | None:
    """Return the singular of a plural, or None where `phrase` is no plural."""
    if phrase in ("people", "persons"):
        return "person"
    first, _, last = phrase.rpartition(" ")
    if len(last) < 3 or last.endswith(("ss", "us", "is")):
        return None
    nouns = load_table()
    # Regular endings first: `inflect` reads `bus` as a plural, and knows no names.
    for ending, instead in (("ves", "f"), ("ves", "fe"), ("s", ""), ("ies", "y"), ("es", "")):
        word = last.removesuffix(ending) + instead
        if last.endswith(ending) and word in nouns and word != last:
            return f"{first} {word}".strip()
    made = _inflect().singular_noun(last)
    return f"{first} {made}".strip() if isinstance(made, str) and made in nouns else None


@lru_cache(CACHED_WORDS)
def pluralize(phrase: str) -> str:
    """Return the plural of a noun phrase."""
    return str(_inflect().plural_noun(phrase))


@lru_cache(CACHED_WORDS)
def with_article(phrase: str) -> str:
    """Return the noun phrase after `a` or `an`."""
    return str(_inflect().a(phrase))


@cache
def _inflect() -> inflect.engine:
    return inflect.engine()
