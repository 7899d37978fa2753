"""CHAIR's metrics over a set of captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.benchmarks.chair.ground_truth import ImageId, load_annotations
from eval.benchmarks.chair.object_extraction import CaptionObjects, Mention, Variant, build_extractor
from eval.benchmarks.chair.tokenizer import locate_tokens
from eval.benchmarks.chair.vocabulary import ObjectVocabulary
from eval.core.jsonl import read_records


@dataclass(frozen=True)
class CaptionScore:
    """One caption and the objects in its image.

    Attributes:
        image_id: Id of the image.
        caption: The caption.
        objects: Objects that the caption mentions.
        ground_truth: Nodes in the image.
    """

    image_id: ImageId
    caption: str
    objects: CaptionObjects
    ground_truth: frozenset[str]

    @property
    def hallucinated(self) -> list[Mention]:
        """Mentions of objects that are not in the image."""
        return [mention for mention in self.objects.mentions if mention.node not in self.ground_truth]

    @property
    def recalled(self) -> frozenset[str]:
        """Nodes in the image that the caption mentions."""
        return self.ground_truth.intersection(mention.node for mention in self.objects.mentions)

    def locate_mentions(self) -> list[dict[str, object]]:
        """Return start and end of each mention in the caption, and whether it is hallucinated.

        Mentions whose words the tokeniser has changed beyond recognition are left out.
        """
        spans = locate_tokens(self.caption, list(self.objects.tokens))
        located: list[dict[str, object]] = []
        for mention in self.objects.mentions:
            first, last = spans[mention.first], spans[mention.last]
            if first is not None and last is not None:
                is_hallucinated = mention.node not in self.ground_truth
                located.append({"start": first[0], "end": last[1], "hallucinated": is_hallucinated})
        return located

    def as_json(self) -> dict[str, object]:
        """Return the line of `--per-caption`."""
        return {
            "image_id": self.image_id,
            "words": [mention.word for mention in self.objects.mentions],
            "nodes": [mention.node for mention in self.objects.mentions],
            "hallucinated": [[mention.word, mention.node] for mention in self.hallucinated],
            "gt_nodes": sorted(self.ground_truth),
            "caption": self.caption,
            "mentions": self.locate_mentions(),
        }


@dataclass(frozen=True)
class ChairScore:
    """CHAIR's metrics, between 0 and 1.

    Attributes:
        chair_s: Share of captions with a hallucinated mention.
        chair_i: Share of mentions that are hallucinated, repetitions included. None without mentions.
        recall: Share of objects in the images that their captions mention. None without objects.
        length: Mean number of tokens after double words are merged, punctuation included.
        notes: Reason under the name of each metric that is None.
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
        """Return the numbers by name, and `notes` if there are any."""
        names = {"length": "len"}
        numbers = {names.get(name, name): value for name, value in vars(self).items() if name != "notes"}
        return {**numbers, "notes": self.notes} if self.notes else numbers


def compute_score(captions: Sequence[CaptionScore]) -> ChairScore:
    """Compute the metrics.

    Args:
        captions: The captions, at least one.

    Returns:
        The metrics.

    Raises:
        ValueError: There are no captions.
    """
    if not captions:
        raise ValueError("there is nothing to score")
    mentions = sum(len(each.objects.mentions) for each in captions)
    hallucinated_mentions = sum(len(each.hallucinated) for each in captions)
    hallucinated_captions = sum(bool(each.hallucinated) for each in captions)
    objects = sum(len(each.ground_truth) for each in captions)
    notes = {}
    if not mentions:
        notes["chair_i"] = "no caption mentions an object"
    if not objects:
        notes["recall"] = "no image has an object"
    return ChairScore(
        chair_s=hallucinated_captions / len(captions),
        chair_i=hallucinated_mentions / mentions if mentions else None,
        recall=sum(len(each.recalled) for each in captions) / objects if objects else None,
        length=sum(each.objects.length for each in captions) / len(captions),
        n=len(captions),
        hallucinated_captions=hallucinated_captions,
        hallucinated_mentions=hallucinated_mentions,
        mentions=mentions,
        notes=notes,
    )


def score_captions(
    captions: Path, annotations: Path, variants: Sequence[Variant], synonyms: Path | None = None
) -> dict[Variant, list[CaptionScore]]:
    """Score all captions of a file under several variants.

    The annotations, hundreds of megabytes for COCO, are loaded once. A malformed file and an image that the
    annotations do not have raise `InputError`. A variant without its data raises `EvaluationError`.

    Args:
        captions: File of `{"image_id", "caption"}` objects.
        annotations: Folder of the annotations.
        variants: The variants.
        synonyms: Table of synonyms. None uses the table of this repository.

    Returns:
        Scores for each variant, in the order of the file.
    """
    vocabulary = ObjectVocabulary.load(synonyms)
    extractors = {variant: build_extractor(variant, vocabulary) for variant in variants}
    records = read_records(captions)
    texts = [(record.get_identifier("image_id"), record.get_string("caption")) for record in records]
    loaded = load_annotations(annotations, {image for image, _ in texts}, vocabulary)
    for record in records:
        loaded.check_image(record)
    scores: dict[Variant, list[CaptionScore]] = {}
    for variant, extract in extractors.items():
        ground_truth = loaded.collect_nodes(extract)
        scores[variant] = [CaptionScore(image, text, extract(text), ground_truth[image]) for image, text in texts]
    return scores
