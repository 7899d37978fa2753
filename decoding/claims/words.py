"""The word lists of the claim extractor, read from `english.toml`."""

from __future__ import annotations

import tomllib
from importlib.resources import files

_LISTS = tomllib.loads((files(__package__) / "english.toml").read_text(encoding="utf-8"))


def load_words(name: str) -> frozenset[str]:
    """Return a list of `english.toml`: words parted by white space, or an array of phrases."""
    value = _LISTS[name]
    return frozenset(value.split() if isinstance(value, str) else value)
