"""Verdicts of a judge model about the answers of a run: during `eval run`, and later with `eval judge`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import track

from eval.benchmarks.llm_judge import JudgeFunction, hash_verdict
from eval.core.answer_store import AnswerStore, StoredAnswer, describe_unreadable, load_answers
from eval.core.results import Results
from eval.core.task import BenchmarkQuestion, BenchmarkTask, JudgeSettings
from eval.errors import EvaluationError, RunError
from eval.runs.executor import MAX_CONSECUTIVE_FAILURES, FailedRequest
from eval.runs.plan import RunPlan
from eval.workflows.finished_run import FinishedRun
from eval.workflows.run_directory import RunDirectory

MAX_REASONS = 5  # failure reasons that are printed


@dataclass(frozen=True)
class JudgeRequest:
    """A prompt of the judge about an answer.

    Attributes:
        key: Hash of judge and prompt.
        prompt: The prompt.
        strategy: Label of the strategy of the answer.
        question: Id of the question.
        seed: Seed of the run.
    """

    key: str
    prompt: str
    strategy: str
    question: str
    seed: int | None


def judge_run(
    path: Path,
    settings: JudgeSettings,
    judge: JudgeFunction,
    concurrency: int,
    console: Console,
    data: str | None = None,
) -> Results:
    """Have the answers of a run rated, and write its results and reports.

    Args:
        path: Folder of the run.
        settings: Model and prompt of the judge.
        judge: The judge.
        concurrency: Number of requests in flight.
        console: Console for progress and failures.
        data: Current data folder, if it has moved.

    Returns:
        The results.

    Raises:
        RunError: The answers of the task need no judge. A judge that fails too often raises it as well.
    """
    run = FinishedRun.load(path, data)
    if not run.task.needs_judge:
        raise RunError(f"{path} is a run of {run.plan.task}, whose answers need no judge.")
    plan = run.plan.model_copy(update={"options": run.plan.options.model_copy(update={"judge": settings})})
    task = plan.load_task()
    failures = request_verdicts(plan, task, run.questions, run.directory, judge, concurrency, console)
    write_failures(run.directory, failures)
    return run.directory.finalize(plan, task, run.questions, run.manifest.server, run.manifest.strategy_via)


def request_verdicts(
    plan: RunPlan,
    task: BenchmarkTask,
    questions: Sequence[BenchmarkQuestion],
    directory: RunDirectory,
    judge: JudgeFunction,
    concurrency: int,
    console: Console,
) -> list[FailedRequest]:
    """Request the verdicts that are not stored yet. Each is stored at once, because verdicts cost money.

    Args:
        plan: The plan.
        task: The task, with the settings of the judge.
        questions: The questions of the plan.
        directory: Folder with the answers.
        judge: The judge.
        concurrency: Number of requests in flight.
        console: Console for progress and failures.

    Returns:
        The requests without a verdict.

    Raises:
        RunError: The judge fails too often. Stored verdicts are not lost.
    """
    answers = load_answers(directory.answers_file).by_key
    requests = {each.key: each for each in _iter_requests(plan, task, questions, answers)}
    failures: list[FailedRequest] = []
    with AnswerStore(directory.verdicts_file) as store:
        if store.unreadable:
            console.print(describe_unreadable(store.file, store.unreadable), markup=False)
        pending = [each for key, each in requests.items() if key not in store]
        consecutive = 0
        with ThreadPoolExecutor(concurrency) as pool:
            futures = {pool.submit(_request_verdict, judge, each): each for each in pending}
            try:
                for future in track(
                    as_completed(futures), "judged", len(futures), console=console, disable=not console.is_terminal
                ):
                    failure = _store_verdict(store, future, futures[future])
                    consecutive = 0 if failure is None else consecutive + 1
                    failures += [] if failure is None else [failure]
                    # As in a run, a judge that has not answered yet gets fewer attempts.
                    if consecutive >= MAX_CONSECUTIVE_FAILURES * (concurrency if len(store) else 1):
                        raise RunError(
                            f"too many failures, the last at {failures[-1].question}: {failures[-1].reason}\n"
                            f"{len(store)} verdicts are stored in {store.file}. The same command continues."
                        )
            finally:
                pool.shutdown(cancel_futures=True)
    print_failures(failures, console, "verdict")
    return failures


def _iter_requests(
    plan: RunPlan,
    task: BenchmarkTask,
    questions: Sequence[BenchmarkQuestion],
    answers: Mapping[str, StoredAnswer],
) -> Iterator[JudgeRequest]:
    judge = plan.options.judge
    assert judge is not None
    for arm in plan.arms:
        for seed in plan.effective_seeds:
            for question in questions:
                answer = answers.get(plan.build_request(arm, question, seed).key)
                if answer is not None:
                    prompt = task.build_judge_prompt(question, answer.text)
                    yield JudgeRequest(hash_verdict(judge.model, prompt), prompt, arm.label, question.id, seed)


def _request_verdict(judge: JudgeFunction, request: JudgeRequest) -> tuple[str, float]:
    start = perf_counter()
    return judge(request.prompt), perf_counter() - start


def _store_verdict(
    store: AnswerStore, future: Future[tuple[str, float]], request: JudgeRequest
) -> FailedRequest | None:
    """Store a verdict, or return the failure of its request."""
    try:
        text, seconds = future.result()
    except EvaluationError as error:
        return FailedRequest(request.strategy, request.question, request.seed, str(error))
    store.add(
        StoredAnswer(
            key=request.key,
            question=request.question,
            strategy=request.strategy,
            seed=request.seed,
            text=text,
            seconds=seconds,
        )
    )
    return None


def write_failures(directory: RunDirectory, failures: Sequence[FailedRequest]) -> None:
    """Write failures.json."""
    directory.write_file("failures.json", dumps([asdict(failure) for failure in failures], indent=1))


def print_failures(failures: Sequence[FailedRequest], console: Console, lacking: str = "answer") -> None:
    """Print the number of failures and their most frequent reasons.

    Args:
        failures: The failures.
        console: The console.
        lacking: Name of that which the failed requests should have given.
    """
    if not failures:
        return
    things = "questions" if lacking == "answer" else "answers"
    console.print(f"[red]{len(failures)} {things} have no {lacking}[/red]. The same command sends them again.")
    for reason, times in Counter(failure.reason for failure in failures).most_common(MAX_REASONS):
        example = next(failure for failure in failures if failure.reason == reason)
        console.print(f"  {times}x {reason} (first: {example.question}, {example.strategy})", markup=False)
