"""The task `dash-b`: DASH-B (arXiv:2503.23573), images that look as if they had an object, and images that have it.

Both kinds have as many images of each of 70 objects. Accuracy, true negative rate, true positive rate and their
harmonic mean are those of the official script. Answers about one object are resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eval.benchmarks.pope.parsers import AnswerParser, YesNo
from eval.benchmarks.yes_no import score_answer, select_parser
from eval.core.jsonl import read_object
from eval.core.metrics import Metric
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions
from eval.errors import InputError

LABELS = {"neg": "no", "pos": "yes"}
QUESTION = "Can you see a {} in this image?"
SUFFIX = "Please answer only with yes or no."
ALL = {"n": 1.0}
TRUE_NEGATIVE_RATE = ({"tn": 1.0}, {"negative": 1.0})
TRUE_POSITIVE_RATE = ({"tp": 1.0}, {"positive": 1.0})

METRICS = (
    Metric("accuracy", "ACC", {"right": 1}, ALL, per_question=True, primary=True, meaning="share of right answers"),
    Metric("tnr", "TNR", *TRUE_NEGATIVE_RATE, meaning="share of absent objects that are denied"),
    Metric("tpr", "TPR", *TRUE_POSITIVE_RATE, meaning="share of present objects that are confirmed"),
    Metric(
        "harmonic_mean",
        "Harmonic Mean",
        *TRUE_NEGATIVE_RATE,
        second=TRUE_POSITIVE_RATE,
        meaning="harmonic mean of TNR and TPR",
    ),
    Metric("yes_ratio", "Yes", {"yes": 1}, ALL, better="neither"),
)


class DashBParser(AnswerParser):
    """An answer with `yes` is a yes, any other with `no` a no, inside words too, in any case. Others are wrong."""

    name = "official"

    def parse(self, answer: str, label: str) -> YesNo | None:
        answer = answer.lower()
        return "yes" if "yes" in answer else "no" if "no" in answer else None

    def is_unparsed(self, answer: str) -> bool:
        return self.parse(answer, "") is None


class DashBTask(BenchmarkTask):
    """DASH-B from the official index files.

    Args:
        data: Folder with the index files and the folders of images, or with a folder `images` that has them.
        options: `parser` and `suffix` apply.
    """

    name = "dash-b"
    title = "DASH-B"
    max_tokens = 64
    metrics = METRICS
    overall_scope = None
    joint_drop_warnings = ()
    is_yes_no = True
    cluster = "object"

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.folder = data / "images" if self._list_indices(data / "images") else data
        self.parser = select_parser(options.parser, DashBParser())
        self.suffix = SUFFIX if options.suffix is None else options.suffix

    def list_source_files(self) -> list[Path]:
        """List the two index files.

        Returns:
            The index of images without the objects, and that of images with them.

        Raises:
            InputError: One of them is missing.
        """
        files = [self.folder / f"dash_benchmark_{kind}.json" for kind in LABELS]
        for file in files:
            if not file.is_file():
                raise InputError(f"there is no {file.name}", self.folder)
        return files

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the questions, in the order of the index files."""
        return [
            question
            for kind, file in zip(LABELS, self.list_source_files(), strict=True)
            for question in self._read_questions(kind, file)
        ]

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Score each answer."""
        return [
            score_answer(self.parser, str(question.truth["label"]), answer)
            for question, answer in zip(questions, answers, strict=True)
        ]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return the parser and the number of unparsed answers."""
        return {"parser": self.parser.name, "unparsed": sum(map(self.parser.is_unparsed, answers))}

    @staticmethod
    def _list_indices(folder: Path) -> list[Path]:
        return [file for kind in LABELS if (file := folder / f"dash_benchmark_{kind}.json").is_file()]

    def _read_questions(self, kind: str, file: Path) -> list[BenchmarkQuestion]:
        """Read an index, which maps sources to objects and objects to file names. Names repeat between folders."""
        questions: list[BenchmarkQuestion] = []
        for source, objects in read_object(file).items():
            if not isinstance(objects, dict):
                raise InputError("must be an object that maps names to lists of files", file, None, source)
            for name, images in objects.items():
                field = f"{source}.{name}"
                if not isinstance(images, list) or not all(isinstance(each, str) for each in images):
                    raise InputError("must be a list of strings", file, None, field)
                for index, image in enumerate(images):
                    path = self.folder / kind / source / name / image
                    if not path.is_file():
                        raise InputError(f"there is no image {path}", file, None, f"{field}[{index}]")
                    questions.append(self._build_question(f"{kind}/{source}/{name}/{image}", path))
        return questions

    def _build_question(self, id: str, image: Path) -> BenchmarkQuestion:
        kind, _, name, file = id.split("/", 3)
        question, label = QUESTION.format(name), LABELS[kind]
        row: JsonValue = {"img_id": file, "object_name": name, "gt": label}
        return BenchmarkQuestion(
            id,
            "images",
            image,
            f"{question} {self.suffix}".strip(),
            {"label": label, "question": question, "row": row},
            cluster_name=name,
        )
