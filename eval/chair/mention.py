"""An object that a caption mentions, and all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mention:
    """`word` as it was found after singular and pairing, `node` its category, at tokens `first` to `last`."""

    word: str
    node: str
    first: int
    last: int


@dataclass(frozen=True)
class Reading:
    """`tokens` as the tokeniser gave them; `length` counts them after double words were joined, as papers report it."""

    tokens: tuple[str, ...]
    length: int
    mentions: tuple[Mention, ...]
