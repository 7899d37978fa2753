"""`eval export --to`: write the questions of a run, or of a data folder, for another toolkit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from eval.benchmarks.registry import load_task
from eval.core.task import TaskOptions
from eval.errors import EvaluationError
from eval.hub.data_folder import open_data_folder
from eval.runs.question_sample import sample_questions
from eval.toolkits.inspect_ai import write_inspect
from eval.toolkits.lmms_eval import write_lmms_eval
from eval.toolkits.question_set import QuestionSet
from eval.toolkits.vlmevalkit import write_vlmevalkit
from eval.workflows.finished_run import FinishedRun

MODEL = "MODEL"  # in the commands of an export without a run
TOOLKITS: Mapping[str, Callable[[QuestionSet, Path], list[Path]]] = {
    "lmms-eval": write_lmms_eval,
    "vlmevalkit": write_vlmevalkit,
    "inspect": write_inspect,
}


def read_run_questions(path: Path, data: str | None = None) -> QuestionSet:
    """Read the questions of a finished run, with its prompts and its limit."""
    run = FinishedRun.load(path, data)
    return QuestionSet.build(run.task, run.questions, run.plan.sampling.max_tokens, run.plan.model)


def read_task_questions(name: str, data: str, limit: int | None = None) -> QuestionSet:
    """Read the questions of a task without a run.

    Args:
        name: Name of the task.
        data: Its data, as in `run --data`.
        limit: Number of questions of every scope, spread over images.

    Returns:
        The questions.
    """
    task = load_task(name, open_data_folder(data, name), TaskOptions())
    questions = task.load_questions()
    return QuestionSet.build(task, sample_questions(questions, limit) if limit else questions, task.max_tokens, MODEL)


def write_questions(questions: QuestionSet, toolkit: str, folder: Path) -> list[Path]:
    """Write questions for a toolkit.

    Args:
        questions: The questions.
        toolkit: A name of `TOOLKITS`.
        folder: A new or empty folder.

    Returns:
        The files that a user names or reads.

    Raises:
        EvaluationError: The folder has files, which a toolkit might take for its own.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EvaluationError(f"--out {folder} is not empty. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return TOOLKITS[toolkit](questions, folder)
