"""`eval rescore`: score the stored answers of a finished run with other labels, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eval.core.answer_store import AnswerStore, describe_unreadable, load_answers
from eval.core.results import Results
from eval.errors import EvaluationError, RunError
from eval.runs.manifest import check_format, read_manifest
from eval.workflows.run_directory import RunDirectory


def rescore_run(
    path: Path,
    labels: str,
    out: Path,
    data: str | None = None,
    *,
    allow_missing: bool = False,
    warn: Callable[[str], None],
) -> Results:
    """Score a run with other labels into a new folder, which has a copy of the answers.

    A run that cannot be scored again, and labels that do not fit to its questions, raise `EvaluationError`.

    Args:
        path: Folder of the run.
        labels: File or folder with labels, or `repope`.
        out: Folder for the results.
        data: Current data folder, if it has moved.
        allow_missing: Accept labels of questions that are not part of the run.
        warn: Called with a message if lines of the answers are no answers.

    Returns:
        The results.

    Raises:
        EvaluationError: The task has no questions of POPE.
        RunError: `out` is the folder of the run.
    """
    manifest = read_manifest(path)
    check_format(manifest, path)
    if manifest.plan.task != "pope":
        raise EvaluationError(f"--labels: {path} is a run of {manifest.plan.task}. Only pope has other labels.")
    if out.resolve() == path.resolve():
        raise RunError(f"--out {out} is the folder of the run. Choose another folder.")
    directory = RunDirectory(out)
    directory.check_task(manifest.plan.task)
    options = manifest.plan.options.model_copy(update={"labels": labels, "allow_missing": allow_missing})
    plan = manifest.plan.model_copy(update={"options": options, **({"data": data} if data else {})})
    task = plan.load_task()
    questions = plan.select_questions(task)
    stored = load_answers(RunDirectory(path).answers_file)
    if stored.unreadable:
        warn(describe_unreadable(RunDirectory(path).answers_file, stored.unreadable))
    with AnswerStore(directory.answers_file) as store:
        for answer in stored.by_key.values():
            store.add(answer)
    return directory.finalize(plan, task, questions, manifest.server, manifest.strategy_via)
