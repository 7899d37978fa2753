"""A file of captions, read against a folder of annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.chair.reading import Reader, Variant, reader
from eval.chair.score import CaptionScore
from eval.chair.truth import ImageId, annotated
from eval.chair.vocabulary import Vocabulary
from eval.inputs import records


def judged(
    captions: Path, annotations: Path, variant: Variant = "original", synonyms: Path | None = None
) -> list[CaptionScore]:
    """Every caption of a file of `{"image_id", "caption"}` objects, in its order.

    Raises:
        InputError: an image that the annotations do not know, or a file of the wrong shape.
        EvaluationError: the variant cannot be had here.
    """
    return judged_by(captions, annotations, [variant], synonyms)[variant]


def judged_by(
    captions: Path, annotations: Path, variants: Sequence[Variant], synonyms: Path | None = None
) -> dict[Variant, list[CaptionScore]]:
    """The same under several variants; the annotations, hundreds of megabytes of COCO, are loaded once."""
    vocabulary = Vocabulary.load(synonyms)
    readers = {variant: reader(variant, vocabulary) for variant in variants}
    rows = records(captions)
    texts = [(row.identifier("image_id"), row.text("caption")) for row in rows]
    known = annotated(annotations, {image for image, _ in texts}, vocabulary)
    for row in rows:
        known.must_know(row)
    return {variant: _scores(texts, read, known.nodes(read)) for variant, read in readers.items()}


def _scores(
    texts: Sequence[tuple[ImageId, str]], read: Reader, there: Mapping[ImageId, frozenset[str]]
) -> list[CaptionScore]:
    return [CaptionScore(image, text, read(text), there[image]) for image, text in texts]
