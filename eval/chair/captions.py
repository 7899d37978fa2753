"""A file of captions, read against a folder of annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.chair.reading import Reader, Variant, reader
from eval.chair.score import CaptionScore
from eval.chair.truth import truth
from eval.chair.vocabulary import Vocabulary
from eval.inputs import Record, records


def judged(
    captions: Path, annotations: Path, variant: Variant = "original", synonyms: Path | None = None
) -> list[CaptionScore]:
    """Every caption of a file of `{"image_id", "caption"}` objects, in its order.

    Raises:
        InputError: an image that the annotations do not know, or a file of the wrong shape.
        EvaluationError: the variant cannot be had here.
    """
    vocabulary = Vocabulary.load(synonyms)
    return against(records(captions), annotations, reader(variant, vocabulary), vocabulary)


def against(captions: Sequence[Record], annotations: Path, read: Reader, vocabulary: Vocabulary) -> list[CaptionScore]:
    texts = [each.text("caption") for each in captions]
    known = truth(annotations, {each.identifier("image_id") for each in captions}, read, vocabulary)
    return [
        CaptionScore(each.identifier("image_id"), text, read(text), known.of(each))
        for each, text in zip(captions, texts, strict=True)
    ]
