"""What is asked, and what an answer to it is worth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from pydantic import JsonValue


@dataclass(frozen=True)
class Question:
    id: str  # unique in its task: "random/17"
    scope: str  # the part of the task that is reported by itself: a split, a subtask
    image: Path
    prompt: str
    truth: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        """Questions about one picture are not independent of each other."""
        return f"{self.image.parent.name}/{self.image.name}"

    @cached_property
    def image_hash(self) -> str:
        return hash_of(self.image)


@dataclass(frozen=True, slots=True)
class Mark:
    """Counts that add up over questions: every metric is a ratio of sums of them."""

    counts: Mapping[str, float]
    detail: Mapping[str, JsonValue] = field(default_factory=dict)  # for the report


def hash_of(file: Path) -> str:
    state = file.stat()
    return _hash(file, state.st_mtime_ns, state.st_size)


@cache
def _hash(file: Path, changed: int, size: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
