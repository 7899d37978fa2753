"""CHAIR without the faults of its reader, to be shown beside it and never instead.

What differs from the original:

- the singular is looked for among the words of the table, so that buses, ties and glasses are found and nothing is
  mangled: a bus counts;
- the words of the table are stripped and lower-cased (motor bike, cheesecake, iPhone), and those of two and three
  words are matched as such (stove top oven), also where a hyphen joins them;
- an object that is said to be absent is not mentioned: "no dog", "without a cat or a dog", "isn't any car".

Statues, paintings and colours (an orange shirt) count as in the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eval.chair.mention import Mention, Reading
from eval.chair.pairs import PAIRS
from eval.chair.tokens import tokens
from eval.chair.vocabulary import Vocabulary

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
NEGATORS = frozenset({"no", "not", "n't", "without", "neither", "nor"})
FILLERS = frozenset({"a", "an", "any", "the", "single", "other", "visible", "sign", "of"})
LINKS = frozenset({"or", "nor"})


def fixed_reader(vocabulary: Vocabulary) -> Callable[[str], Reading]:
    nodes = {" ".join(word.lower().split()): node for word, node in vocabulary.items()}
    # Pairs that stand for another word (a baby bear is a bear), and pairs that stand for no object at all.
    phrases = {**{pair: nodes.get(meant) for pair, meant in PAIRS.items()}, **nodes}
    parts = {part for phrase in phrases for part in phrase.split()}

    def read(caption: str) -> Reading:
        raw = tokens(caption)
        words = [_base(word, parts, nodes) for word in raw]
        found: list[Mention] = []
        absent: set[int] = set()  # last tokens of what is said not to be there
        length = place = 0
        while place < len(words):
            phrase, size = _longest(words, place, phrases)
            node = phrases.get(phrase)
            if node is not None and _denied(raw, place, absent):
                absent.add(place + size - 1)
            elif node is not None:
                found.append(Mention(phrase, node, place, place + size - 1))
            length += 1
            place += size
        if any(mention.node == "toilet" for mention in found):
            found = [mention for mention in found if mention.word != "seat"]
        return Reading(tuple(raw), length, tuple(found))

    return read


def _base(word: str, parts: set[str], nodes: Mapping[str, str]) -> str:
    """The word of the table that a token is a form of, or the token."""
    if word in parts:
        return word
    for written in (word.replace("-", " "), word.replace("-", "")):
        if written in nodes:
            return written
    for plural, one in IRREGULAR.items():  # policemen, too
        if word.endswith(plural) and word[: -len(plural)] + one in parts:
            return word[: -len(plural)] + one
    for ending, instead in ENDINGS:
        if word.endswith(ending) and word[: -len(ending)] + instead in parts:
            return word[: -len(ending)] + instead
    return word


def _longest(words: Sequence[str], place: int, phrases: Mapping[str, str | None]) -> tuple[str, int]:
    for size in (3, 2):
        phrase = " ".join(words[place : place + size])
        if phrase in phrases and place + size <= len(words):
            return phrase, size
    return words[place], 1


def _denied(raw: Sequence[str], place: int, absent: set[int]) -> bool:
    """Whether the words before a mention say that there is none, or link it to one of which they said so."""
    for before in range(place - 1, -1, -1):
        if raw[before] in NEGATORS - LINKS:
            return True
        if before in absent:
            return before < place - 1
        if raw[before] not in FILLERS | LINKS:
            return False
    return False
