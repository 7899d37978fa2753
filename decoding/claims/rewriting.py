"""Rules of English for a sentence that loses a noun phrase, or gets another in its place."""

from __future__ import annotations

from decoding.claims.noun_phrases import (
    AUXILIARIES,
    FUNCTION_WORDS,
    MIN_VERB_SHARE,
    PREPOSITIONS,
    SINGULAR,
    NounMatch,
    Word,
    find_noun_at,
    is_before_noun,
    is_determiner,
    split_words,
)
from decoding.claims.nouns import Noun, find_noun, with_article
from decoding.claims.words import load_words

CONNECTIVES = load_words("connectives") | {","}
VERBS = AUXILIARIES | load_words("verbs")
ARTICLES = frozenset({"a", "an"})
CLOSING_MARKS = frozenset(".,;:!?)]”")
PLURAL_DETERMINERS = load_words("plural_determiners")
MASS_NOUNS = load_words("mass_nouns")
# Words that a sentence does not end with. Prepositions as "behind" and "nearby" may be at the end.
OPEN_ENDS = frozenset({"a", "an", "and", "at", "but", "for", "from", "in", "into", "of", "or", "the", "to", "with"})


def shorten_sentence(sentence: str, phrase_start: int) -> str | None:
    """End a sentence before a noun phrase that is left out.

    Only connecting words may be between the last noun phrase that stays and the one that is left out, and a verb
    must be before. The list that stays gets its "and", and "there are" becomes "there is" before a single thing.
    "There are also a dog, a cat and a bus." is "There are also a dog and a cat." without the bus. Without the cat it is
    "There is also a dog."

    Args:
        sentence: The sentence.
        phrase_start: Offset of the noun phrase that is left out, with its article.

    Returns:
        The shorter sentence, with a full stop; None where it cannot end there.
    """
    words = [word for word in split_words(sentence) if word.start < phrase_start]
    count = len(words)
    while count > 0 and (words[count - 1].lower in CONNECTIVES or is_determiner(words[count - 1].lower)):
        count -= 1
    words = words[:count]
    if not words or find_noun_before(words, count) is None or not any(word.lower in VERBS for word in words[:-1]):
        return None
    if has_open_part(words):
        return None
    text = sentence[: words[-1].end]
    comma = find_list_comma(words)
    if comma is not None:
        text = f"{text[: words[comma].start]} and{text[words[comma].end :]}"
    elif (verb := find_plural_verb(words)) is not None:
        text = f"{text[: words[verb].start]}is{text[words[verb].end :]}"
    return f"{text}."


def has_open_part(words: list[Word]) -> bool:
    """Whether a quotation, a bracket or a pair with `between`, `both` or `either` is open at the end."""
    text = [word.lower for word in words]
    openings = sum(text.count(mark) for mark in "([“") - sum(text.count(mark) for mark in ")]”")
    pair = max((at for at, word in enumerate(text) if word in ("between", "both", "either", "neither")), default=None)
    return (
        openings > 0 or text.count('"') % 2 == 1 or (pair is not None and not {"and", "or", "nor"} & set(text[pair:]))
    )


def find_list_comma(words: list[Word]) -> int | None:
    """Return the index of the comma before the last member of a list that has no "and"."""
    commas = [at for at, word in enumerate(words) if word.text == ","]
    if not commas:
        return None
    comma, member = commas[-1], words[commas[-1] + 1 :]
    allowed = PREPOSITIONS if member and is_determiner(member[0].lower) else frozenset[str]()
    is_noun_phrase = all(
        word.lower not in FUNCTION_WORDS or is_determiner(word.lower) or word.lower in allowed for word in member
    )
    is_behind_verb = any(word.lower in VERBS for word in words[:comma])
    begins = bool(member) and (is_determiner(member[0].lower) or find_noun(member[0].lower) is not None)
    return comma if begins and is_noun_phrase and is_behind_verb else None


def find_plural_verb(words: list[Word]) -> int | None:
    """Return the index of `are` in "There are (also) a dog" and "Visible are a dog"."""
    for at in range(1, len(words)):
        if words[at].lower != "are" or words[at - 1].lower not in ("there", "here", "visible"):
            continue
        rest = [word.lower for word in words[at + 1 :]]
        things = rest[1:] if rest[:1] == ["also"] else rest
        return at if things[:1] and things[0] in ARTICLES | {"one"} and not {"and", ","} & set(things) else None
    return None


def find_noun_before(words: list[Word], at: int) -> Noun | None:
    """Return the noun that ends right before a word. A participle as `holding` is none."""
    word = words[at - 1]
    found = find_noun(word.lower) if word.is_word and word.lower not in FUNCTION_WORDS else None
    if found is None or found[0].verb >= MIN_VERB_SHARE or (found[0].text.endswith("ing") and not found[0].is_thing):
        return None
    return found[0]


def is_grammatical(sentence: str, changed_from: int) -> bool:
    """Whether a sentence is grammatical after a phrase was replaced by other text.

    A model without an alternative continues with ungrammatical text: "There is also a There is". The rules:

    - The name of a thing replaces one. The name of a place is not checked.
    - A sentence does not begin with a small letter or a closing mark, and no function word inside it has a capital.
    - A noun in the singular follows each `a` and `an`, and no second article. The next word decides between the two.
    - "There are" needs a plural or several things, and "There is" no plural.
    - A sentence does not end with an article or a word as `and`.

    Args:
        sentence: The sentence.
        changed_from: Offset from which its text is new.

    Returns:
        Whether they hold for the new text.
    """
    words = split_words(sentence)
    new = [at for at, word in enumerate(words) if word.end > changed_from]
    if not new:
        return False
    if new[0]:
        begins_well = names_thing(words, find_head(words, new[0]))
    else:
        begins_well = not words[0].text[0].islower() and words[0].text not in CLOSING_MARKS
    last = next((word.lower for word in reversed(words) if word.is_word), "")
    agrees = find_plural_verb([word for word in words if word.is_word or word.text == ","]) is None
    return begins_well and agrees and last not in OPEN_ENDS and all(is_well_placed(words, at) for at in new)


def is_well_placed(words: list[Word], at: int) -> bool:
    """Whether a word may be at its position, by the rules of `is_grammatical`."""
    word = words[at]
    before = words[at - 1] if at else None
    if word.lower in ARTICLES | {"the"} and before is not None and before.lower in ARTICLES | {"the"}:
        return False
    is_inside = before is not None and (before.is_word or before.text == ",")
    if is_inside and word.text[0].isupper() and word.lower in FUNCTION_WORDS and word.lower != "i":
        return False
    if word.lower in ARTICLES:
        head = find_head(words, at)
        if head is None or is_plural_noun(words, head):
            return False
        follower = words[at + 1].text
        is_spelled = sum(letter.isupper() for letter in follower) > 1  # as in "an SUV"
        return is_spelled or with_article(follower).startswith(f"{word.lower} ")
    verb = find_existential_verb(words, at)
    if verb == "is":
        return word.lower not in PLURAL_DETERMINERS and not is_only_plural(words, at)
    found = find_noun_at(words, at) if verb == "are" else None
    return found is None or found.is_plural or is_plural_noun(words, at)


def find_existential_verb(words: list[Word], at: int) -> str | None:
    """Return `is` or `are` if a word follows "there is (also)" or "there are (also)", else None."""
    verb = at - 2 if at > 1 and words[at - 1].lower == "also" else at - 1
    if verb < 1 or words[verb - 1].lower != "there" or words[verb].lower not in ("is", "are"):
        return None
    return words[verb].lower


def is_plural_noun(words: list[Word], at: int) -> bool:
    """Whether the last noun of a compound that begins at a word is a plural."""
    match = find_last_noun(words, at)
    return match is not None and match.is_plural


def is_only_plural(words: list[Word], at: int) -> bool:
    """Whether the last noun of a compound that begins at a word is a plural, unlike `fish` and mass nouns."""
    match = find_last_noun(words, at)
    if match is None or not match.is_plural:
        return False
    text = " ".join(word.lower for word in words[match.start : match.end])
    return text not in MASS_NOUNS and text != match.noun.text


def names_thing(words: list[Word], at: int | None) -> bool:
    """Whether the last noun of a compound that begins at a word names a thing, and no place."""
    match = None if at is None else find_last_noun(words, at)
    return match is not None and match.noun.is_thing


def find_last_noun(words: list[Word], at: int) -> NounMatch | None:
    """Return the last noun of a compound that begins at a word."""
    match = find_noun_at(words, at)
    while match is not None and (follower := find_noun_at(words, match.end, match)) is not None:
        match = follower
    return match


def find_head(words: list[Word], at: int) -> int | None:
    """Return the index of the noun of a noun phrase that begins at a word; None where none does.

    Inside a sentence, a phrase does not begin with a capital letter.
    """
    if at and words[at].text[0].isupper() and words[at].lower in SINGULAR | {"the"}:
        return None
    while at < len(words) and words[at].is_word and find_noun_at(words, at) is None and is_before_noun(words[at].lower):
        at += 1
    return at if at < len(words) and find_noun_at(words, at) is not None else None
