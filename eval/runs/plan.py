"""The plan of a run: one task, and the same questions and seeds for every arm. manifest.json stores it.

The second name of an alias is the key that version 0.1.0 wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from eval.benchmarks.registry import load_task
from eval.core.task import BenchmarkQuestion, BenchmarkTask, TaskOptions
from eval.errors import EvaluationError, InputError
from eval.hub.data_folder import open_data_folder
from eval.runs.question_sample import sample_questions
from eval.runs.request import EvalRequest, SamplingSettings, derive_seed
from eval.runs.stack_spec import StackSpec


class Shard(BaseModel):
    """Share `number` of `of` shares, counted from 1. All questions about an image are in one share."""

    model_config = ConfigDict(frozen=True)

    number: int = 1
    of: int = 1

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not 1 <= self.number <= self.of:
            raise EvaluationError(f"--shard {self.number}/{self.of}: the first number must be from 1 to the second.")
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `k/n`.

        Args:
            text: The text.

        Returns:
            The shard.

        Raises:
            EvaluationError: The text has another form.
        """
        number, slash, of = text.partition("/")
        if not slash or not number.isdecimal() or not of.isdecimal():
            raise EvaluationError(f"--shard: '{text}' must have the form k/n, for example 1/4.")
        return cls(number=int(number), of=int(of))


class Arm(BaseModel):
    """One arm of the run: a stack that answers all questions. A control is an arm, too.

    Attributes:
        spec: The stack with the parameters that are sent.
        full_spec: The stack with the defaults of the server.
        branches: Rows beside the main row.
        controls: Labels of the matched controls.
        requested: False for an arm that was only added as a control.
    """

    model_config = ConfigDict(frozen=True)

    spec: StackSpec = Field(validation_alias=AliasChoices("spec", "recipe"))
    full_spec: StackSpec = Field(validation_alias=AliasChoices("full_spec", "full"))
    branches: int = 0
    controls: tuple[str, ...] = ()
    requested: bool = Field(default=True, validation_alias=AliasChoices("requested", "asked_for"))

    @property
    def label(self) -> str:
        """The label of the stack."""
        return self.spec.label


class RunPlan(BaseModel):
    """All that determines the requests of a run.

    Attributes:
        task: Name of the task.
        data: `embedded`, the data folder, or the place of tables that are unpacked.
        model: Name of the model.
        weights: Fingerprint of the weights, if the server reports one.
        arms: The arms, plain decoding first.
        seeds: Seeds of sampled decoding.
        limit: Number of questions of every scope, None for all.
        limit_selects: Whether these are the first ones, as in plans of version 0.1.0, or a sample over all images.
        check: Have the claims of every answer checked.
        yes_scores: Get the log-probabilities of yes and no from plain decoding.
    """

    model_config = ConfigDict(frozen=True)

    task: str
    data: str
    model: str
    weights: str | None = None
    arms: tuple[Arm, ...] = Field(validation_alias=AliasChoices("arms", "contenders"))
    sampling: SamplingSettings
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    limit_selects: Literal["first", "sample"] = "first"
    shard: Shard = Shard()
    options: TaskOptions = TaskOptions()
    check: bool = False
    yes_scores: bool = False

    @property
    def labels(self) -> list[str]:
        """The labels of all arms."""
        return [arm.label for arm in self.arms]

    @property
    def data_folder(self) -> Path:
        """The folder with the official files."""
        return open_data_folder(self.data, self.task)

    def load_task(self) -> BenchmarkTask:
        """Create the task."""
        return load_task(self.task, self.data_folder, self.options)

    def select_questions(self, task: BenchmarkTask) -> list[BenchmarkQuestion]:
        """Select `limit` questions of every scope, and of these the questions of the shard.

        If the task has other labels, questions without one are dropped from this selection.

        Args:
            task: The task.

        Returns:
            The questions in the order of the task.

        Raises:
            InputError: No question is left.
        """
        limited = self._limit_questions(task.load_questions())
        image_index = {name: index for index, name in enumerate(sorted({question.cluster for question in limited}))}
        selected = [each for each in limited if image_index[each.cluster] % self.shard.of == self.shard.number - 1]
        if not selected:
            raise InputError("no question is left for this run", self.data_folder)
        return task.replace_labels(selected)

    def _limit_questions(self, questions: list[BenchmarkQuestion]) -> list[BenchmarkQuestion]:
        if self.limit is None:
            return questions
        if self.limit_selects == "sample":
            return sample_questions(questions, self.limit)
        scopes = [list(group) for _, group in groupby(questions, key=lambda question: question.scope)]
        return [question for scope in scopes for question in scope[: self.limit]]

    def iter_requests(self, arm: Arm, questions: list[BenchmarkQuestion]) -> Iterator[EvalRequest]:
        """Iterate over the requests of an arm, seed by seed."""
        for seed in self.effective_seeds:
            for question in questions:
                yield self.build_request(arm, question, seed)

    def build_request(self, arm: Arm, question: BenchmarkQuestion, seed: int | None) -> EvalRequest:
        """Build the request of one question under one arm and one seed of the run.

        Args:
            arm: The arm.
            question: A question. One without an image is asked under plain decoding in every arm, because strategies
                act on the image and refuse requests without one.
            seed: The seed.

        Returns:
            The request.
        """
        if question.image is None:
            arm = next((each for each in self.arms if each.spec.is_plain), arm)
        question_seed = None if seed is None else derive_seed(seed, question)
        return EvalRequest(
            question,
            arm.spec,
            arm.full_spec,
            self.sampling,
            self.model,
            question_seed,
            self.weights,
            self.check,
            self.yes_scores and arm.spec.is_plain,
        )

    @property
    def effective_seeds(self) -> tuple[int | None, ...]:
        """The seeds, or a single None under greedy decoding, whose answers do not depend on a seed."""
        return (None,) if self.sampling.greedy else self.seeds

    def differs_only_in_shard(self, other: RunPlan) -> bool:
        """Return whether both plans are shards of one run. The data folder may differ."""
        return _select_comparable_fields(self) == _select_comparable_fields(other)


def _select_comparable_fields(plan: RunPlan) -> dict[str, Any]:
    return plan.model_dump(mode="json", exclude={"shard": {"number"}, "data": True})
