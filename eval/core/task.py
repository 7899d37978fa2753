"""The interface of a benchmark: its questions, and the scores of answers to them."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, JsonValue

from eval.core.hashing import hash_file
from eval.core.metrics import Metric
from eval.core.results import ExtraTable

CONSTANT_ANSWERS: Mapping[str, str] = {"all yes": "Yes", "all no": "No"}
"""Rows of the tables of yes/no questions, and the answer that each gives to every question."""


class JudgeSettings(BaseModel):
    """The judge model that rates answers.

    Attributes:
        model: Name of the model.
        prompt: Template with the fields of a row in braces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompt: str


class TaskOptions(BaseModel):
    """Options that change the questions or the scores.

    Attributes:
        suffix: Text appended to yes/no questions. None uses the default of the task.
        prompt: Prompt of captions. None uses the default of the task.
        parser: Parser of yes/no answers.
        variant: Variant of CHAIR.
        synonyms: Table of synonyms for CHAIR. None uses the table of this repository.
        labels: File or folder with other labels for POPE's questions, or `repope` for the files of RePOPE in the data
            folder. None uses the labels of the question files.
        allow_missing: Accept other labels of questions that are not part of the run.
        similarity: Treat words as equal in AMBER's captions if spaCy finds them similar, as in the official script.
        judge: The judge of answers that another model rates. None if they are not rated yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suffix: str | None = None
    prompt: str | None = None
    parser: str = "official"
    variant: str = "original"
    synonyms: Path | None = None
    labels: str | None = None
    allow_missing: bool = False
    similarity: bool = True
    judge: JudgeSettings | None = None


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A prompt about an image, and the ground truth.

    Attributes:
        id: Unique in the task, such as `random/17`.
        scope: The part of the task that is reported separately: a split or a subtask.
        image: The image file. None for a question that is asked without one.
        prompt: The text of the request.
        truth: Label and other data that the scorer needs.
        group: Name of the questions of the scope that are scored together with this one. A sample has all of them, or
            none. None for a question that is scored alone.
        cluster_name: Name of the questions that are resampled together. None for those about one image.
    """

    id: str
    scope: str
    image: Path | None
    prompt: str
    truth: Mapping[str, JsonValue] = field(default_factory=dict)
    group: str | None = None
    cluster_name: str | None = None

    @property
    def cluster(self) -> str:
        """The name of the cluster: the image, unless the task has others.

        Answers about one image are not independent, so they are resampled together.
        """
        return self.cluster_name or self.image_name

    @property
    def image_name(self) -> str:
        """Folder and name of the image."""
        return f"{self.image.parent.name}/{self.image.name}" if self.image else "no image"

    @cached_property
    def image_hash(self) -> str | None:
        """The SHA-256 of the image file, None without one."""
        return hash_file(self.image) if self.image else None

    def read_image(self) -> tuple[str, bytes] | None:
        """Read the image.

        Returns:
            Its media type and its bytes, None without an image.
        """
        if self.image is None:
            return None
        return mimetypes.guess_type(self.image.name)[0] or "image/png", self.image.read_bytes()


@dataclass(frozen=True, slots=True)
class Score:
    """The counts of one answer. Counts add up over questions, and every metric is a ratio of sums of counts.

    Attributes:
        counts: Counts by name.
        detail: Data for the report.
    """

    counts: Mapping[str, float]
    detail: Mapping[str, JsonValue] = field(default_factory=dict)


class BenchmarkTask(Protocol):
    """A benchmark that a run can execute.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        max_tokens: Default limit of one answer.
        metrics: The metrics.
        overall_scope: Title of all scopes together. None if they are not reported together.
        joint_drop_warnings: Pairs of metrics. Reports warn if both drop, because that is no improvement.
        is_yes_no: Whether all questions are yes/no questions. Their `truth` has the `label` yes or no, and the detail
            of their scores has the answer as `parsed`: `yes`, `no` or another value.
        cluster: Name of the things that intervals resample, in the singular.
        needs_judge: Whether another model rates the answers.
    """

    name: str
    title: str
    max_tokens: int
    metrics: tuple[Metric, ...]
    overall_scope: str | None
    joint_drop_warnings: tuple[tuple[str, str], ...]
    is_yes_no: bool = False
    cluster: str = "image"
    needs_judge: bool = False

    @property
    def constant_answers(self) -> Mapping[str, str]:
        """Rows of the tables with one answer to every question, and the answer."""
        return CONSTANT_ANSWERS if self.is_yes_no else {}

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the questions. Data that cannot be used raise `InputError`."""

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Score each answer. If questions are scored together, the last of them carries the joint counts."""

    def list_source_files(self) -> list[Path]:
        """List the files that questions and scores depend on, without the images."""

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return notes about the answers of one strategy, such as the number of unparsed ones."""

    def replace_labels(self, questions: list[BenchmarkQuestion]) -> list[BenchmarkQuestion]:
        """Replace the labels of the questions of a run if the options have others, and drop questions without one."""
        return questions

    def check_scorable(self, questions: Sequence[BenchmarkQuestion]) -> None:
        """Raise `EvaluationError` if answers to these questions could not be scored."""
        return

    def build_judge_prompt(self, question: BenchmarkQuestion, answer: str) -> str:
        """Build the prompt of the judge about an answer, for a task that needs one."""
        raise ValueError(f"{self.name} needs no judge")

    def add_verdicts(self, verdicts: Mapping[str, str]) -> None:
        """Add verdicts of judges, by the hash of judge and prompt."""
        return

    def has_verdict(self, question: BenchmarkQuestion, answer: str) -> bool:
        """Return whether an answer can be scored: it has a verdict, or needs none."""
        return True

    def build_tables(
        self, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Sequence[str]]
    ) -> list[ExtraTable]:
        """Build tables that are shown beside the comparison, from the answers of all strategies."""
        return []
