"""CHAIR: describe the picture; which of the objects named are not in it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

from eval.chair.breakdown import by_category, by_position
from eval.chair.reading import Reader, Variant, reader
from eval.chair.score import CaptionScore, score
from eval.chair.truth import Annotated, ImageId, annotated
from eval.chair.vocabulary import OURS, Vocabulary
from eval.dataset import Pictures
from eval.errors import EvaluationError, InputError
from eval.inputs import Record, document
from eval.metrics import Metric
from eval.question import Mark, Question
from eval.results import Aside, Table
from eval.tasks.options import Options
from eval.tasks.task import Task

PROMPT = "Please describe this image in detail."
CAPTIONS = {"n": 1.0}
SHOWN = 12  # categories
STRETCHES = 5

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
        self._loaded: tuple[frozenset[ImageId], Annotated] | None = None

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

    def check(self, questions: Sequence[Question]) -> None:
        for variant in get_args(Variant):
            if variant in (self.variant, "fixed"):
                self._scored(variant, questions, [""] * len(questions))

    def marks(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Mark]:
        return [mark(each) for each in self._scored(self.variant, questions, answers)]

    def notes(self, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
        return {"variant": self.variant}

    def tables(self, questions: Sequence[Question], answers: Mapping[str, Sequence[str]]) -> list[Table]:
        read = {label: self._scored(self.variant, questions, texts) for label, texts in answers.items()}
        asides = [parts_of_captions(read), invented_objects(read)]
        if self.variant == "fixed":
            return asides
        return [as_fixed({each: self._scored("fixed", questions, texts) for each, texts in answers.items()}), *asides]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.synonyms)

    def _scored(self, variant: Variant, questions: Sequence[Question], answers: Sequence[str]) -> list[CaptionScore]:
        images = [cast(ImageId, question.truth["image_id"]) for question in questions]
        read, there = self._reader(variant), self._truth(variant, frozenset(images))
        return [
            CaptionScore(image, answer, read(answer), there[image])
            for image, answer in zip(images, answers, strict=True)
        ]

    def _reader(self, variant: Variant) -> Reader:
        if variant not in self._readers:
            self._readers[variant] = reader(variant, self._vocabulary)
        return self._readers[variant]

    def _truth(self, variant: Variant, wanted: frozenset[ImageId]) -> dict[ImageId, frozenset[str]]:
        if (variant, wanted) not in self._known:
            self._known[variant, wanted] = self._annotated(wanted).nodes(self._reader(variant))
        return self._known[variant, wanted]

    def _annotated(self, wanted: frozenset[ImageId]) -> Annotated:
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = wanted, annotated(self.annotations, wanted, self._vocabulary)
        return self._loaded[1]

    @cached_property
    def _readers(self) -> dict[Variant, Reader]:
        return {}

    @cached_property
    def _known(self) -> dict[tuple[Variant, frozenset[ImageId]], dict[ImageId, frozenset[str]]]:
        return {}


Read = Mapping[str, Sequence[CaptionScore]]  # by strategy


def as_fixed(read: Read) -> Table:
    numbers = {label: score(captions) for label, captions in read.items()}
    rows = [Aside(strategy=label, values=[one.chair_s, one.chair_i, one.recall]) for label, one in numbers.items()]
    return Table(title="Read by the fixed variant", heads=["CHAIR_s", "CHAIR_i", "Recall"], rows=rows)


def parts_of_captions(read: Read) -> Table:
    """CHAIR_i of what begins in each part: models invent more towards the end."""
    found = {label: by_position(captions, STRETCHES) for label, captions in read.items()}
    rows = [Aside(strategy=label, values=[part.rate for part in parts]) for label, parts in found.items()]
    heads = [f"{at / STRETCHES:.0%} to {(at + 1) / STRETCHES:.0%}" for at in range(STRETCHES)]
    return Table(title="CHAIR_i by part of the caption", heads=heads, rows=rows)


def invented_objects(read: Read) -> Table:
    """How often each object is mentioned that is not there; those that all strategies together invent most."""
    found = {label: {row.node: row.hallucinated for row in by_category(each)} for label, each in read.items()}
    total = sum((Counter(numbers) for numbers in found.values()), Counter[str]())
    heads = sorted(total, key=lambda node: (-total[node], node))[:SHOWN]
    rows = [Aside(strategy=label, values=[each.get(node, 0) for node in heads]) for label, each in found.items()]
    return Table(title="Objects invented most often", heads=heads, rows=rows, percent=False)


def mark(scored: CaptionScore) -> Mark:
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
