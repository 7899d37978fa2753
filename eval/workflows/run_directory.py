"""The folder of a run: answers, manifest, results and reports."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, ValidationError

from eval.analysis.evaluation import evaluate
from eval.core.answer_store import ANSWERS_NAME, StoredAnswer, describe_error, load_answers
from eval.core.results import Results
from eval.core.task import BenchmarkQuestion, BenchmarkTask
from eval.errors import InputError, RunError
from eval.report.html import render_html
from eval.report.markdown import render_markdown
from eval.runs.manifest import MANIFEST_NAME, Manifest
from eval.runs.plan import RunPlan

VERDICTS_NAME = "verdicts.jsonl"
PLAN_NAME = "plan.json"  # written before the first request, while a manifest is written after the last one


class _PlannedTask(BaseModel):
    """The field of a plan that decides whether a folder belongs to another run."""

    task: str


class _ManifestOfTask(BaseModel):
    """A manifest, of which only the task is read."""

    plan: _PlannedTask


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def answers_file(self) -> Path:
        """The stored answers."""
        return self.path / ANSWERS_NAME

    @property
    def verdicts_file(self) -> Path:
        """The stored verdicts of judges."""
        return self.path / VERDICTS_NAME

    @property
    def results_file(self) -> Path:
        """The results."""
        return self.path / "results.json"

    @property
    def report_file(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def check_task(self, task: str) -> None:
        """Check that the folder is new or has a run of the task, because a run replaces the results.

        Args:
            task: Name of the task.

        Raises:
            RunError: The folder has a run of another task.
        """
        if (stored := self._read_task()) not in {None, task}:
            raise RunError(f"--out {self.path} has a run of {stored}, not of {task}. Choose another folder.")

    def _read_task(self) -> str | None:
        """Read the task from the plan, or from the manifest of a version that wrote no plan.

        Returns:
            Name of the task, None if the folder has neither file.

        Raises:
            InputError: The file cannot be parsed.
        """
        for name in (PLAN_NAME, MANIFEST_NAME):
            file = self.path / name
            if not file.is_file():
                continue
            try:
                if name == PLAN_NAME:
                    return _PlannedTask.model_validate_json(file.read_bytes()).task
                return _ManifestOfTask.model_validate_json(file.read_bytes()).plan.task
            except ValidationError as error:
                raise InputError(f"is not a {file.stem} of a run: {describe_error(error)}", file) from None
        return None

    def load_results(self) -> Results:
        """Load the results of a finished run.

        Returns:
            The results.

        Raises:
            InputError: The file results.json is missing or cannot be parsed.
        """
        try:
            return Results.model_validate_json(self.results_file.read_bytes())
        except OSError:
            raise InputError("no such file. Is this the folder of a finished run?", self.results_file) from None
        except ValidationError as error:
            raise InputError(f"not results: {describe_error(error)}", self.results_file) from None

    def load_verdicts(self) -> dict[str, str]:
        """Load the verdicts of judges, by the hash of judge and prompt. A run without a judge has none."""
        if not self.verdicts_file.is_file():
            return {}
        return {key: verdict.text for key, verdict in load_answers(self.verdicts_file).by_key.items()}

    def write_plan(self, plan: RunPlan) -> None:
        """Write the plan, so that the folder belongs to the task before there are results."""
        self.write_file(PLAN_NAME, plan.model_dump_json(indent=2))

    def finalize(
        self,
        plan: RunPlan,
        task: BenchmarkTask,
        questions: list[BenchmarkQuestion],
        server: str,
        strategy_via: str,
    ) -> Results:
        """Score the stored answers and write plan, manifest, results and reports."""
        task.add_verdicts(self.load_verdicts())
        results, table = evaluate(plan, task, questions, load_answers(self.answers_file))
        answers = chain.from_iterable(table.answers.values())
        manifest = self.write_manifest(plan, task, questions, answers, server, strategy_via)
        self.write_file("results.json", results.model_dump_json(indent=2))
        self.write_file("report.md", render_markdown(results, manifest))
        self.write_file("report.html", render_html(results, manifest, table))
        return results

    def write_manifest(
        self,
        plan: RunPlan,
        task: BenchmarkTask,
        questions: list[BenchmarkQuestion],
        answers: Iterable[StoredAnswer],
        server: str,
        strategy_via: str,
    ) -> Manifest:
        """Write plan and manifest of a run whose requests have been sent."""
        manifest = Manifest.create(plan, task, questions, answers, server, strategy_via)
        self.write_plan(plan)
        self.write_file(MANIFEST_NAME, manifest.model_dump_json(indent=2))
        return manifest

    def write_file(self, name: str, text: str) -> None:
        """Replace a file atomically: a reader sees the old or the new content.

        Args:
            name: Name of the file.
            text: The content.

        Raises:
            RunError: The file cannot be written.
        """
        temporary = self.path / f".{name}.new"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)
        except OSError as error:
            raise RunError(f"{self.path / name} cannot be written: {error.strerror}.") from error
