"""Where CHAIR's numbers come from: which objects, and which part of the captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.chair.score import CaptionScore


@dataclass(frozen=True)
class Category:
    """One node over all captions. `pictures` hold it, of which the captions of `recalled` say so.

    `company`: what was in the pictures in which it was invented, most frequent first; each picture counts once for each
    caption that invents it.
    """

    node: str
    mentions: int
    hallucinated: int
    pictures: int
    recalled: int
    company: tuple[tuple[str, int], ...]

    @property
    def rate(self) -> float | None:
        return self.hallucinated / self.mentions if self.mentions else None

    @property
    def recall(self) -> float | None:
        return self.recalled / self.pictures if self.pictures else None

    def as_json(self) -> dict[str, object]:
        return {**vars(self), "company": dict(self.company), "rate": self.rate, "recall": self.recall}


@dataclass(frozen=True)
class Stretch:
    """The part of the captions from `start` to `end`, as shares of their length, and the mentions that begin there."""

    start: float
    end: float
    mentions: int
    hallucinated: int

    @property
    def rate(self) -> float | None:
        return self.hallucinated / self.mentions if self.mentions else None

    def as_json(self) -> dict[str, object]:
        return {**vars(self), "rate": self.rate}


def by_category(captions: Sequence[CaptionScore], company: int = 5) -> list[Category]:
    """Most often invented first, then by name; nodes that are neither mentioned nor there are left out."""
    mentions = Counter(mention.node for each in captions for mention in each.reading.mentions)
    invented = Counter(mention.node for each in captions for mention in each.hallucinated)
    pictures = Counter(node for each in captions for node in each.truth)
    recalled = Counter(node for each in captions for node in each.recalled)
    beside: dict[str, Counter[str]] = {node: Counter() for node in invented}
    for each in captions:
        for node in {mention.node for mention in each.hallucinated}:
            beside[node].update(sorted(each.truth))
    rows = [
        Category(
            node=node,
            mentions=mentions[node],
            hallucinated=invented[node],
            pictures=pictures[node],
            recalled=recalled[node],
            company=tuple(beside.get(node, Counter()).most_common(company)),
        )
        for node in mentions.keys() | pictures.keys()
    ]
    return sorted(rows, key=lambda row: (-row.hallucinated, row.node))


def by_position(captions: Sequence[CaptionScore], stretches: int = 10) -> list[Stretch]:
    """Models invent more towards the end of a caption; this shows how much."""
    mentions, invented = Counter[int](), Counter[int]()
    for each in captions:
        for mention in each.reading.mentions:
            part = mention.first * stretches // len(each.reading.tokens)
            mentions[part] += 1
            invented[part] += mention.node not in each.truth
    return [
        Stretch(part / stretches, (part + 1) / stretches, mentions[part], invented[part]) for part in range(stretches)
    ]
