"""CHAIR's numbers over a set of captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eval.chair.mention import Mention, Reading
from eval.chair.truth import ImageId


@dataclass(frozen=True)
class CaptionScore:
    """One caption against its picture."""

    image_id: ImageId
    caption: str
    reading: Reading
    truth: frozenset[str]

    @property
    def hallucinated(self) -> list[Mention]:
        return [mention for mention in self.reading.mentions if mention.node not in self.truth]

    @property
    def recalled(self) -> frozenset[str]:
        return self.truth.intersection(mention.node for mention in self.reading.mentions)

    def as_json(self) -> dict[str, object]:
        return {
            "image_id": self.image_id,
            "words": [mention.word for mention in self.reading.mentions],
            "nodes": [mention.node for mention in self.reading.mentions],
            "hallucinated": [[mention.word, mention.node] for mention in self.hallucinated],
            "gt_nodes": sorted(self.truth),
        }


@dataclass(frozen=True)
class ChairScore:
    """Shares between 0 and 1, None where a division has no value, which `notes` explains.

    `chair_s`: captions with a hallucinated mention, of all captions; `chair_i`: hallucinated mentions, of all mentions,
    repeats counted; `recall`: objects that their captions mention, of all that are there; `length`: mean tokens, after
    double words were joined, punctuation included.
    """

    chair_s: float
    chair_i: float | None
    recall: float | None
    length: float
    n: int
    hallucinated_captions: int
    hallucinated_mentions: int
    mentions: int
    notes: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        names = {"length": "len"}
        numbers = {names.get(name, name): value for name, value in vars(self).items() if name != "notes"}
        return {**numbers, "notes": self.notes} if self.notes else numbers


def score(captions: Sequence[CaptionScore]) -> ChairScore:
    """
    Raises:
        ValueError: no captions.
    """
    if not captions:
        raise ValueError("there is nothing to score")
    mentions = sum(len(each.reading.mentions) for each in captions)
    hallucinated = sum(len(each.hallucinated) for each in captions)
    captions_with = sum(bool(each.hallucinated) for each in captions)
    there = sum(len(each.truth) for each in captions)
    notes = {}
    if not mentions:
        notes["chair_i"] = "no caption mentions an object"
    if not there:
        notes["recall"] = "no picture holds an object"
    return ChairScore(
        chair_s=captions_with / len(captions),
        chair_i=hallucinated / mentions if mentions else None,
        recall=sum(len(each.recalled) for each in captions) / there if there else None,
        length=sum(each.reading.length for each in captions) / len(captions),
        n=len(captions),
        hallucinated_captions=captions_with,
        hallucinated_mentions=hallucinated,
        mentions=mentions,
        notes=notes,
    )
