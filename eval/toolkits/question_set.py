"""The questions that a toolkit gets, with their images as files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.core.hashing import hash_json
from eval.core.task import BenchmarkQuestion, BenchmarkTask
from eval.errors import EvaluationError

NAME_LENGTH = 20  # characters of the hash in the name of an image


@dataclass(frozen=True)
class ToolkitQuestion:
    """A yes/no question about an image.

    Attributes:
        id: Id in the task.
        scope: Split, subtask or category.
        prompt: The prompt of a run, with its suffix.
        label: `yes` or `no`.
        image: The image file.
        image_name: Name of its copy, made from the content.
    """

    id: str
    scope: str
    prompt: str
    label: str
    image: Path
    image_name: str


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a task.

    Attributes:
        task: Name of the task.
        max_tokens: Limit of one answer.
        model: Model name for the commands in the README of the export.
        questions: The questions.
        left_out: Number of questions without an image.
    """

    task: str
    max_tokens: int
    model: str
    questions: tuple[ToolkitQuestion, ...]
    left_out: int

    @property
    def name(self) -> str:
        """The name of the set in a toolkit, which is no name of a set of that toolkit."""
        return f"onlyseen_{self.task.replace('-', '_')}"

    @property
    def scopes(self) -> list[str]:
        """The scopes, in the order of the task."""
        return list(dict.fromkeys(question.scope for question in self.questions))

    @property
    def hash(self) -> str:
        """The hash of all questions."""
        return hash_json([[each.id, each.prompt, each.label, each.image_name] for each in self.questions])

    @classmethod
    def build(
        cls, task: BenchmarkTask, questions: Sequence[BenchmarkQuestion], max_tokens: int, model: str
    ) -> QuestionSet:
        """Build the set from the questions of a run.

        Args:
            task: The task.
            questions: Its questions.
            max_tokens: Limit of one answer.
            model: Model name for commands.

        Returns:
            The set.

        Raises:
            EvaluationError: The task has other questions than yes/no questions, or no question with an image.
        """
        if not task.is_yes_no:
            raise EvaluationError(f"--to: {task.name} has no yes/no questions, and other ones are not exported.")
        found = tuple(
            ToolkitQuestion(
                id=question.id,
                scope=question.scope,
                prompt=question.prompt,
                label=str(question.truth["label"]),
                image=question.image,
                image_name=f"{(question.image_hash or '')[:NAME_LENGTH]}{question.image.suffix.lower()}",
            )
            for question in questions
            if question.image is not None
        )
        if not found:
            raise EvaluationError(f"--to: no question of {task.name} has an image.")
        return cls(task.name, max_tokens, model, found, len(questions) - len(found))

    def copy_images(self, folder: Path) -> None:
        """Copy every image once into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in {question.image_name: question.image for question in self.questions}.items():
            shutil.copyfile(image, folder / name)
