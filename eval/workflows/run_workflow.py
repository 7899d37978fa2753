"""`eval run`: prepare a plan, send the requests without a stored answer, and write the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from eval.benchmarks.llm_judge import JudgeFunction
from eval.core.answer_store import AnswerStore, describe_unreadable
from eval.core.dataset import check_images
from eval.core.results import Results
from eval.core.task import BenchmarkQuestion
from eval.errors import EvaluationError, RunError, ServerError
from eval.runs.client import EvalClient
from eval.runs.executor import FailedRequest, RunExecutor
from eval.runs.plan import RunPlan
from eval.runs.preparation import RunOptions, prepare_plan
from eval.runs.progress import ProgressBars
from eval.workflows.judging import print_failures, request_verdicts, write_failures
from eval.workflows.run_directory import RunDirectory


@dataclass(frozen=True)
class RunOutcome:
    """The result of a run. Without results, the answers must be rated by a judge first."""

    directory: RunDirectory
    results: Results | None
    failures: list[FailedRequest]


async def run_evaluation(
    options: RunOptions,
    client: EvalClient,
    out: Path | None,
    concurrency: int,
    console: Console,
    judge: JudgeFunction | None = None,
) -> RunOutcome:
    """Execute a run, or continue it if the folder has answers.

    Errors before the first request raise `EvaluationError`. Stored answers are never lost.

    Args:
        options: The options of the run.
        client: A client that is not open yet.
        out: Folder of the run. None uses a name made from task and model.
        concurrency: Number of requests in flight.
        console: Console for progress and failures.
        judge: The judge that the options name.

    Returns:
        The folder, the results and the failed requests.

    Raises:
        RunError: The server fails too often, or rejects all requests.
    """
    async with client:
        plan, strategy_via = await prepare_plan(client, options)
        task = plan.load_task()
        questions = plan.select_questions(task)
        check_images(question.image for question in questions)
        task.check_scorable(questions)
        directory = RunDirectory(out or _build_default_folder(plan))
        directory.check_task(plan.task)
        _print_plan(plan, questions, directory, console)
        with AnswerStore(directory.answers_file) as store, ProgressBars(console) as progress:
            directory.write_plan(plan)
            if store.unreadable:
                console.print(describe_unreadable(store.file, store.unreadable), markup=False)
            executor = RunExecutor(client, store, strategy_via, concurrency, progress)
            try:
                await executor.execute(plan, questions)
            except ServerError as error:
                hint = f"{len(store)} answers are stored in {directory.answers_file}. The same command continues."
                raise RunError(f"{error}\n{hint}") from error
            finally:
                write_failures(directory, executor.failures)
    print_failures(executor.failures, console)
    failures = list(executor.failures)
    if task.needs_judge:
        if judge is None:
            directory.write_manifest(plan, task, questions, [], client.base_url, strategy_via)
            return RunOutcome(directory, None, failures)
        failures += request_verdicts(plan, task, questions, directory, judge, concurrency, console)
        write_failures(directory, failures)
    results = directory.finalize(plan, task, questions, client.base_url, strategy_via)
    return RunOutcome(directory, results, failures)


def _print_plan(
    plan: RunPlan, questions: Sequence[BenchmarkQuestion], directory: RunDirectory, console: Console
) -> None:
    images = len({question.image for question in questions if question.image})
    seeds = f", seeds {', '.join(map(str, plan.seeds))}" if not plan.sampling.greedy else ", greedy"
    console.print(
        f"{plan.task}: {len(questions)} questions on {images} images, {plan.model}{seeds} → {directory.path}",
        highlight=False,
    )
    if plan.sampling.greedy and len(plan.seeds) > 1:
        console.print("Greedy answers do not depend on a seed, so each question is sent once.")


def _build_default_folder(plan: RunPlan) -> Path:
    name = "".join(char if char.isalnum() or char in "-._" else "-" for char in f"{plan.task}-{plan.model}")
    if not plan.sampling.greedy:
        name += f"-t{plan.sampling.temperature:g}"
    if plan.shard.of > 1:
        name += f"-{plan.shard.number}of{plan.shard.of}"
    return Path("runs") / name


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse a list of seeds, such as `0,1,2`.

    Args:
        text: The list.

    Returns:
        The seeds, without duplicates.

    Raises:
        EvaluationError: A seed is not an integer, or there is none.
    """
    try:
        seeds = tuple(dict.fromkeys(int(piece) for piece in text.split(",") if piece.strip()))
    except ValueError:
        raise EvaluationError(f"--seeds: '{text}' must have the form 0,1,2.") from None
    if not seeds:
        raise EvaluationError("--seeds: name at least one.")
    return seeds
