"""The task `chair`: one caption for each image, scored by the objects that it mentions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

from eval.benchmarks.caption_metrics import build_caption_rate, build_length, build_mention_rate
from eval.benchmarks.chair.breakdown import count_by_category, count_by_position
from eval.benchmarks.chair.ground_truth import CocoAnnotations, ImageId, load_annotations
from eval.benchmarks.chair.object_extraction import Extractor, Variant, build_extractor
from eval.benchmarks.chair.score import CaptionScore, compute_score
from eval.benchmarks.chair.vocabulary import DEFAULT_SYNONYMS, ObjectVocabulary
from eval.core.dataset import ImageFolder
from eval.core.jsonl import JsonRecord, read_object
from eval.core.metrics import Metric
from eval.core.results import ExtraTable, TableRow
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions
from eval.errors import EvaluationError, InputError

PROMPT = "Please describe this image in detail."
MAX_CATEGORIES = 12  # columns of the table of hallucinated objects
PARTS = 5  # parts of a caption in the table by position

METRICS = (
    build_caption_rate("chair_s", "CHAIR_s"),
    build_mention_rate("chair_i", "CHAIR_i", "hallucinated", "mentions"),
    Metric(
        "recall", "Recall", {"recalled": 1}, {"present": 1}, meaning="share of present objects that captions mention"
    ),
    build_length("len", "Length", "length", "number of tokens of a caption"),
)

GroundTruthByImage = dict[ImageId, frozenset[str]]
ScoresByStrategy = Mapping[str, Sequence[CaptionScore]]


class ChairTask(BenchmarkTask):
    """CHAIR on a folder with images and annotations in COCO's format.

    Args:
        data: Folder with images and annotations, or with a folder `annotations`.
        options: `variant`, `synonyms` and `prompt` apply.

    Raises:
        EvaluationError: There is no variant with the name.
    """

    name = "chair"
    title = "CHAIR"
    max_tokens = 512
    metrics = METRICS
    overall_scope = None
    joint_drop_warnings = (("chair_s", "recall"), ("chair_i", "recall"))

    def __init__(self, data: Path, options: TaskOptions) -> None:
        if options.variant not in get_args(Variant):
            raise EvaluationError(
                f"There is no variant '{options.variant}'. Choose one of {', '.join(get_args(Variant))}."
            )
        self.variant = cast(Variant, options.variant)
        self.synonyms = options.synonyms
        self.prompt = PROMPT if options.prompt is None else options.prompt
        self.annotations = data / "annotations" if (data / "annotations").is_dir() else data
        self.data = data
        self._loaded: tuple[frozenset[ImageId], CocoAnnotations] | None = None
        self._extractors: dict[Variant, Extractor] = {}
        self._ground_truths: dict[tuple[Variant, frozenset[ImageId]], GroundTruthByImage] = {}

    def list_source_files(self) -> list[Path]:
        """List the annotation files and the table of synonyms."""
        annotations = [
            file for kind in ("instances", "captions") for file in sorted(self.annotations.glob(f"{kind}*.json"))
        ]
        return [*annotations, self.synonyms or DEFAULT_SYNONYMS]

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Create one question for every annotated image in the data folder, sorted by id.

        Returns:
            The questions.

        Raises:
            InputError: No image is listed or found, or an image is missing although annotations and images are in one
                folder.
        """
        folder = ImageFolder(self.data)
        names = {
            image: name
            for file in sorted(self.annotations.glob("instances*.json"))
            for image, name in _read_image_names(file)
        }
        if not names:
            raise InputError("no images are listed, expected instances.json or instances_*.json", self.annotations)
        questions = [
            BenchmarkQuestion(str(image), "captions", file, self.prompt, {"image_id": image})
            for image, name in sorted(names.items(), key=lambda item: str(item[0]).zfill(20))
            if (file := folder.find_image(name)) is not None
        ]
        if not questions:
            raise InputError(f"none of the {len(names)} listed images is in this folder", self.data)
        if self.data == self.annotations and len(questions) < len(names):
            missing = next(name for name in names.values() if folder.find_image(name) is None)
            raise InputError(
                f"{len(names) - len(questions)} of the listed images are missing, the first is {missing}", self.data
            )
        return questions

    def check_scorable(self, questions: Sequence[BenchmarkQuestion]) -> None:
        """Score empty answers, which raises `EvaluationError` if annotations or data of a variant are unusable."""
        for variant in get_args(Variant):
            if variant in (self.variant, "fixed"):
                self._score_captions(variant, questions, [""] * len(questions))

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Count the mentions of each caption."""
        return [_count_mentions(each) for each in self._score_captions(self.variant, questions, answers)]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return the variant."""
        return {"variant": self.variant}

    def build_tables(
        self, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Sequence[str]]
    ) -> list[ExtraTable]:
        """Build the tables by position and by object, and the table of `fixed` for other variants."""
        scores = {label: self._score_captions(self.variant, questions, texts) for label, texts in answers.items()}
        tables = [_build_position_table(scores), _build_object_table(scores)]
        if self.variant == "fixed":
            return tables
        fixed = {label: self._score_captions("fixed", questions, texts) for label, texts in answers.items()}
        return [_build_fixed_table(fixed), *tables]

    @cached_property
    def _vocabulary(self) -> ObjectVocabulary:
        return ObjectVocabulary.load(self.synonyms)

    def _score_captions(
        self, variant: Variant, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]
    ) -> list[CaptionScore]:
        images = [cast(ImageId, question.truth["image_id"]) for question in questions]
        extract, ground_truth = self._get_extractor(variant), self._get_ground_truth(variant, frozenset(images))
        return [
            CaptionScore(image, answer, extract(answer), ground_truth[image])
            for image, answer in zip(images, answers, strict=True)
        ]

    def _get_extractor(self, variant: Variant) -> Extractor:
        if variant not in self._extractors:
            self._extractors[variant] = build_extractor(variant, self._vocabulary)
        return self._extractors[variant]

    def _get_ground_truth(self, variant: Variant, images: frozenset[ImageId]) -> GroundTruthByImage:
        if (variant, images) not in self._ground_truths:
            nodes = self._get_annotations(images).collect_nodes(self._get_extractor(variant))
            self._ground_truths[variant, images] = nodes
        return self._ground_truths[variant, images]

    def _get_annotations(self, images: frozenset[ImageId]) -> CocoAnnotations:
        if self._loaded is None or self._loaded[0] != images:
            self._loaded = images, load_annotations(self.annotations, images, self._vocabulary)
        return self._loaded[1]


def _build_fixed_table(scores: ScoresByStrategy) -> ExtraTable:
    totals = {label: compute_score(captions) for label, captions in scores.items()}
    rows = [
        TableRow(strategy=label, values=[total.chair_s, total.chair_i, total.recall]) for label, total in totals.items()
    ]
    return ExtraTable(title="Variant fixed", headers=["CHAIR_s", "CHAIR_i", "Recall"], rows=rows)


def _build_position_table(scores: ScoresByStrategy) -> ExtraTable:
    parts = {label: count_by_position(captions, PARTS) for label, captions in scores.items()}
    rows = [TableRow(strategy=label, values=[part.rate for part in each]) for label, each in parts.items()]
    headers = [f"{part / PARTS:.0%} to {(part + 1) / PARTS:.0%}" for part in range(PARTS)]
    return ExtraTable(title="CHAIR_i by position in the caption", headers=headers, rows=rows)


def _build_object_table(scores: ScoresByStrategy) -> ExtraTable:
    """Count the hallucinations of the objects that all strategies together hallucinate most."""
    counts = {label: {row.node: row.hallucinated for row in count_by_category(each)} for label, each in scores.items()}
    total = sum((Counter(numbers) for numbers in counts.values()), Counter[str]())
    nodes = sorted(total, key=lambda node: (-total[node], node))[:MAX_CATEGORIES]
    rows = [TableRow(strategy=label, values=[each.get(node, 0) for node in nodes]) for label, each in counts.items()]
    return ExtraTable(title="Most frequent hallucinated objects", headers=nodes, rows=rows, percent=False)


def _count_mentions(caption: CaptionScore) -> Score:
    counts = {
        "n": 1,
        "bad": int(bool(caption.hallucinated)),
        "hallucinated": len(caption.hallucinated),
        "mentions": len(caption.objects.mentions),
        "recalled": len(caption.recalled),
        "present": len(caption.ground_truth),
        "length": caption.objects.length,
    }
    return Score(counts, build_detail(caption))


def build_detail(caption: CaptionScore) -> dict[str, Any]:
    """Return tokens and mentions of a caption. A mention is first and last token, node, and whether it is real."""
    return {
        "tokens": list(caption.objects.tokens),
        "mentions": [
            [each.first, each.last, each.node, each.node in caption.ground_truth] for each in caption.objects.mentions
        ],
        "missed": sorted(caption.ground_truth - caption.recalled),
        "present": sorted(caption.ground_truth),
    }


def _read_image_names(file: Path) -> list[tuple[ImageId, str]]:
    rows = read_object(file).get("images")
    if not isinstance(rows, list):
        raise InputError("must be a list of images", file, None, "images")
    records = [
        JsonRecord(row if isinstance(row, dict) else {}, file, index=index, parent="images")
        for index, row in enumerate(rows)
    ]
    return [(record.get_identifier("id"), record.get_string("file_name")) for record in records]
