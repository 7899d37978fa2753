"""Breakdown of CHAIR's numbers by object and by position in the caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.benchmarks.chair.score import CaptionScore


@dataclass(frozen=True)
class CategoryBreakdown:
    """One node over all captions.

    Attributes:
        node: The node.
        mentions: Number of mentions.
        hallucinated: Number of hallucinated mentions.
        images: Number of captions whose image has the node.
        recalled: Number of captions whose image has the node and that mention it.
        co_occurring: Nodes in the images in which this node is hallucinated, most frequent first. An image counts once
            for each caption that hallucinates the node.
    """

    node: str
    mentions: int
    hallucinated: int
    images: int
    recalled: int
    co_occurring: tuple[tuple[str, int], ...]

    @property
    def rate(self) -> float | None:
        """Share of mentions that are hallucinated."""
        return self.hallucinated / self.mentions if self.mentions else None

    @property
    def recall(self) -> float | None:
        """Share of captions that mention the node, of those whose image has it."""
        return self.recalled / self.images if self.images else None

    def as_json(self) -> dict[str, object]:
        """Return the entry of `by_category` in the JSON output."""
        return {
            "node": self.node,
            "mentions": self.mentions,
            "hallucinated": self.hallucinated,
            "images": self.images,
            "recalled": self.recalled,
            "co_occurring": dict(self.co_occurring),
            "rate": self.rate,
            "recall": self.recall,
        }


@dataclass(frozen=True)
class PositionBreakdown:
    """One part of all captions, with the mentions that begin in it.

    Attributes:
        start: Start of the part, as a share of the length.
        end: End of the part, as a share of the length.
        mentions: Number of mentions.
        hallucinated: Number of hallucinated mentions.
    """

    start: float
    end: float
    mentions: int
    hallucinated: int

    @property
    def rate(self) -> float | None:
        """Share of mentions that are hallucinated."""
        return self.hallucinated / self.mentions if self.mentions else None

    def as_json(self) -> dict[str, object]:
        """Return the entry of `by_position` in the JSON output."""
        return {**vars(self), "rate": self.rate}


def count_by_category(captions: Sequence[CaptionScore], max_co_occurring: int = 5) -> list[CategoryBreakdown]:
    """Count mentions and hallucinations of each node.

    Args:
        captions: The scored captions.
        max_co_occurring: Number of co-occurring nodes to keep.

    Returns:
        Nodes that are mentioned or in an image, sorted by hallucinations, then by name.
    """
    mentions = Counter(mention.node for each in captions for mention in each.objects.mentions)
    hallucinated = Counter(mention.node for each in captions for mention in each.hallucinated)
    images = Counter(node for each in captions for node in each.ground_truth)
    recalled = Counter(node for each in captions for node in each.recalled)
    co_occurring: dict[str, Counter[str]] = {node: Counter() for node in hallucinated}
    for each in captions:
        for node in {mention.node for mention in each.hallucinated}:
            co_occurring[node].update(sorted(each.ground_truth))
    rows = [
        CategoryBreakdown(
            node=node,
            mentions=mentions[node],
            hallucinated=hallucinated[node],
            images=images[node],
            recalled=recalled[node],
            co_occurring=tuple(co_occurring.get(node, Counter()).most_common(max_co_occurring)),
        )
        for node in mentions.keys() | images.keys()
    ]
    return sorted(rows, key=lambda row: (-row.hallucinated, row.node))


def count_by_position(captions: Sequence[CaptionScore], parts: int = 10) -> list[PositionBreakdown]:
    """Count mentions and hallucinations in each part of the captions. Models hallucinate more towards the end.

    Args:
        captions: The scored captions.
        parts: Number of parts of equal length.

    Returns:
        The parts, in order.
    """
    mentions, hallucinated = Counter[int](), Counter[int]()
    for each in captions:
        for mention in each.objects.mentions:
            part = mention.first * parts // len(each.objects.tokens)
            mentions[part] += 1
            hallucinated[part] += mention.node not in each.ground_truth
    return [
        PositionBreakdown(part / parts, (part + 1) / parts, mentions[part], hallucinated[part]) for part in range(parts)
    ]
