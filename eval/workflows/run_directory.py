"""The folder of a run: answers, manifest, results and reports."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from eval.analysis.evaluation import evaluate
from eval.core.answer_store import ANSWERS_NAME, load_answers
from eval.core.results import Results
from eval.core.task import BenchmarkQuestion, BenchmarkTask
from eval.errors import RunError
from eval.report.html import render_html
from eval.report.markdown import render_markdown
from eval.runs.manifest import MANIFEST_NAME, Manifest
from eval.runs.plan import RunPlan


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def answers_file(self) -> Path:
        """The stored answers."""
        return self.path / ANSWERS_NAME

    @property
    def results_file(self) -> Path:
        """The results."""
        return self.path / "results.json"

    @property
    def report_file(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def finalize(
        self,
        plan: RunPlan,
        task: BenchmarkTask,
        questions: list[BenchmarkQuestion],
        server: str,
        strategy_via: str,
    ) -> Results:
        """Score the stored answers and write manifest, results and reports."""
        results, table = evaluate(plan, task, questions, load_answers(self.answers_file))
        answers = chain.from_iterable(table.answers.values())
        manifest = Manifest.create(plan, task, questions, answers, server, strategy_via)
        self.write_file(MANIFEST_NAME, manifest.model_dump_json(indent=2))
        self.write_file("results.json", results.model_dump_json(indent=2))
        self.write_file("report.md", render_markdown(results, manifest))
        self.write_file("report.html", render_html(results, manifest, table))
        return results

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
