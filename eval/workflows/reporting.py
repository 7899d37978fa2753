"""`eval report`: score the stored answers of a finished run and write its reports again, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eval.core.answer_store import describe_unreadable
from eval.core.results import Results
from eval.errors import RunError
from eval.runs.manifest import Manifest
from eval.workflows.finished_run import FinishedRun


def rebuild_reports(path: Path, data: str | None = None, *, warn: Callable[[str], None]) -> Results:
    """Write results, reports and manifest of a run again.

    A run that cannot be scored again raises `EvaluationError`. The reports of a run whose questions, annotations or
    images have changed are left as they are, because its answers belong to the former ones.

    Args:
        path: Folder of the run.
        data: Current data folder, if it has moved.
        warn: Called with a message if lines of the answers are no answers.

    Returns:
        The results.

    Raises:
        RunError: An input of the run has changed.
    """
    run = FinishedRun.load(path, data)
    if run.stored.unreadable:
        warn(describe_unreadable(run.directory.answers_file, run.stored.unreadable))
    manifest = run.manifest
    current = Manifest.create(run.plan, run.task, run.questions, [], manifest.server, manifest.strategy_via)
    if changes := [name for name in manifest.list_changes(current) if name != "the answers"]:
        raise RunError(f"{path}: {', '.join(changes)} changed since the run. Restore the data, or run again.")
    return run.directory.finalize(run.plan, run.task, run.questions, manifest.server, manifest.strategy_via)
