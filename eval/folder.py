"""The folder of a run: answers, manifest, results and reports. Files are replaced whole, never half."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from eval.errors import RunError
from eval.evaluation import evaluate
from eval.manifest import NAME, Manifest
from eval.plan import Plan
from eval.question import Question
from eval.results import Results
from eval.store import stored
from eval.tasks.task import Task


@dataclass(frozen=True)
class Folder:
    path: Path

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def conclude(self, plan: Plan, task: Task, questions: list[Question], server: str, door: str) -> Results:
        """Scores what is in the store, and writes it down in every form."""
        from eval.report.markdown import markdown
        from eval.report.page import page

        results, sheet = evaluate(plan, task, questions, stored(self.answers))
        manifest = Manifest.of(plan, task, questions, sheet, server, door)
        self.write(NAME, manifest.model_dump_json(indent=2))
        self.write("results.json", results.model_dump_json(indent=2))
        self.write("report.md", markdown(results, manifest))
        self.write("report.html", page(results, manifest, sheet))
        return results

    def write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.new"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)
        except OSError as error:
            raise RunError(f"{self.path / name} cannot be written: {error.strerror}.") from error
