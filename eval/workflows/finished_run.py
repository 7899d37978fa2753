"""A finished run: its manifest, questions and stored answers, read without a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eval.core.answer_store import StoredAnswer, StoredAnswers, load_answers
from eval.core.task import BenchmarkQuestion, BenchmarkTask
from eval.errors import RunError
from eval.runs.manifest import Manifest, check_format, read_manifest
from eval.runs.plan import Arm, RunPlan
from eval.workflows.run_directory import RunDirectory


@dataclass(frozen=True)
class FinishedRun:
    """A run with a manifest.

    Attributes:
        directory: Its folder.
        manifest: Its manifest.
        plan: Its plan, with the current data folder.
        task: The task.
        questions: The questions of the plan.
        stored: The stored answers.
    """

    directory: RunDirectory
    manifest: Manifest
    plan: RunPlan
    task: BenchmarkTask
    questions: list[BenchmarkQuestion]
    stored: StoredAnswers

    @classmethod
    def load(cls, path: Path, data: str | None = None) -> Self:
        """Load a run. A run that cannot be scored again raises `EvaluationError`.

        Args:
            path: Folder of the run.
            data: Current data folder, if it has moved.

        Returns:
            The run.
        """
        directory, manifest = RunDirectory(path), read_manifest(path)
        check_format(manifest, path)
        plan = manifest.plan.model_copy(update={"data": data}) if data else manifest.plan
        task = plan.load_task()
        task.add_verdicts(directory.load_verdicts())
        return cls(directory, manifest, plan, task, plan.select_questions(task), load_answers(directory.answers_file))

    def get_arm(self, label: str) -> Arm:
        """Return the strategy with a label.

        Args:
            label: The label, as in the tables of the run.

        Returns:
            The strategy.

        Raises:
            RunError: The run has no such strategy.
        """
        for arm in self.plan.arms:
            if arm.label == label:
                return arm
        raise RunError(f"{self.directory.path} has no '{label}'. It has {', '.join(self.plan.labels)}.")

    def find_answer(self, arm: Arm, question: BenchmarkQuestion, seed: int | None) -> StoredAnswer | None:
        """Return the answer to a question under a strategy and a seed of the run, or None."""
        return self.stored.by_key.get(self.plan.build_request(arm, question, seed).key)

    def find_scorable_answer(self, arm: Arm, question: BenchmarkQuestion, seed: int | None) -> StoredAnswer | None:
        """Return the answer to a question, or None if it is missing or lacks a verdict that the task needs."""
        answer = self.find_answer(arm, question, seed)
        return answer if answer and self.task.has_verdict(question, answer.text) else None
