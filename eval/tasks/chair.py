"""CHAIR: describe the picture; which of the objects named are not in it?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

from eval.chair.reading import Reader, Variant, reader
from eval.chair.score import CaptionScore
from eval.chair.truth import ImageId, truth
from eval.chair.vocabulary import OURS, Vocabulary
from eval.dataset import Pictures
from eval.errors import EvaluationError, InputError
from eval.inputs import Record, document
from eval.metrics import Metric
from eval.question import Mark, Question
from eval.tasks.options import Options
from eval.tasks.task import Task

PROMPT = "Please describe this image in detail."
CAPTIONS = {"n": 1.0}

METRICS = (
    Metric("chair_s", "CHAIR_s", {"bad": 1}, CAPTIONS, better="lower", per_question=True, primary=True),
    Metric("chair_i", "CHAIR_i", {"hallucinated": 1}, {"mentions": 1}, better="lower", primary=True),
    Metric("recall", "Recall", {"recalled": 1}, {"there": 1}),
    Metric("len", "Length", {"length": 1}, CAPTIONS, better="neither", percent=False, watch=0.15),
)


class Chair(Task):
    name = "chair"
    title = "CHAIR"
    max_tokens = 512
    metrics = METRICS
    whole = None
    cautions = (("chair_s", "recall"), ("chair_i", "recall"))

    def __init__(self, data: Path, options: Options) -> None:
        if options.variant not in get_args(Variant):
            raise EvaluationError(f"There is no variant '{options.variant}'. There are {', '.join(get_args(Variant))}.")
        self.variant = cast(Variant, options.variant)
        self.synonyms = options.synonyms
        self.prompt = PROMPT if options.prompt is None else options.prompt
        self.annotations = data / "annotations" if (data / "annotations").is_dir() else data
        self.data = data

    def files(self) -> list[Path]:
        annotated = [
            file for kind in ("instances", "captions") for file in sorted(self.annotations.glob(f"{kind}*.json"))
        ]
        return [*annotated, self.synonyms or OURS]

    def questions(self) -> list[Question]:
        """One for every annotated picture that lies there, by id."""
        pictures = Pictures(self.data)
        listed = {
            image: name for file in sorted(self.annotations.glob("instances*.json")) for image, name in images(file)
        }
        if not listed:
            raise InputError("no pictures are listed: expected instances.json or instances_*.json", self.annotations)
        found = [
            Question(str(image), "captions", file, self.prompt, {"image_id": image})
            for image, name in sorted(listed.items(), key=lambda each: str(each[0]).zfill(20))
            if (file := pictures.find(name)) is not None
        ]
        if not found:
            raise InputError(f"none of the {len(listed)} pictures that are listed lies there", self.data)
        if self.data == self.annotations and len(found) < len(listed):
            absent = next(name for name in listed.values() if pictures.find(name) is None)
            raise InputError(
                f"{len(listed) - len(found)} of the pictures listed are missing, first {absent}", self.data
            )
        return found

    def marks(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Mark]:
        there = self._truth(tuple(cast(ImageId, question.truth["image_id"]) for question in questions))
        return [self._mark(question, answer, there) for question, answer in zip(questions, answers, strict=True)]

    def notes(self, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
        return {"variant": self.variant}

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.synonyms)

    @cached_property
    def _read(self) -> Reader:
        return reader(self.variant, self._vocabulary)

    def _truth(self, wanted: tuple[ImageId, ...]) -> dict[ImageId, frozenset[str]]:
        if wanted not in self._known:
            self._known[wanted] = truth(self.annotations, set(wanted), self._read, self._vocabulary).nodes
        return self._known[wanted]

    @cached_property
    def _known(self) -> dict[tuple[ImageId, ...], dict[ImageId, frozenset[str]]]:
        return {}

    def _mark(self, question: Question, answer: str, there: dict[ImageId, frozenset[str]]) -> Mark:
        image = cast(ImageId, question.truth["image_id"])
        scored = CaptionScore(image, answer, self._read(answer), there[image])
        counts = {
            "n": 1,
            "bad": int(bool(scored.hallucinated)),
            "hallucinated": len(scored.hallucinated),
            "mentions": len(scored.reading.mentions),
            "recalled": len(scored.recalled),
            "there": len(scored.truth),
            "length": scored.reading.length,
        }
        return Mark(counts, detail(scored))


def detail(scored: CaptionScore) -> dict[str, Any]:
    return {
        "tokens": list(scored.reading.tokens),
        "mentions": [[each.first, each.last, each.node, each.node in scored.truth] for each in scored.reading.mentions],
        "missed": sorted(scored.truth - scored.recalled),
        "there": sorted(scored.truth),
    }


def images(file: Path) -> list[tuple[ImageId, str]]:
    rows = document(file).get("images")
    if not isinstance(rows, list):
        raise InputError("must be a list of pictures", file, None, "images")
    places = [
        Record(row if isinstance(row, dict) else {}, file, index=at, within="images") for at, row in enumerate(rows)
    ]
    return [(place.identifier("id"), place.text("file_name")) for place in places]
