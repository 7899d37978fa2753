"""One run: prepare, ask what is not answered yet, conclude."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path

from rich.console import Console

from eval.client import Client
from eval.dataset import refuse_others
from eval.errors import EvaluationError, RunError, ServerError
from eval.folder import Folder
from eval.interview import Failure, Interview
from eval.plan import Plan
from eval.preparation import Wishes, prepare
from eval.progress import Bars
from eval.question import Question
from eval.results import Results
from eval.store import Store

SHOWN = 5  # failures told one by one


@dataclass(frozen=True)
class Outcome:
    folder: Folder
    results: Results
    failures: list[Failure]


async def run(wishes: Wishes, client: Client, out: Path | None, concurrency: int, console: Console) -> Outcome:
    """Raises: EvaluationError: it could not begin, or not go on; what was answered is kept."""
    async with client:
        plan, door = await prepare(client, wishes)
        task = plan.make_task()
        questions = plan.questions(task)
        refuse_others(question.image for question in questions)
        task.check(questions)
        folder = Folder(out or default_folder(plan))
        announce(plan, questions, folder, console)
        with Store(folder.answers) as store, Bars(console) as bars:
            interview = Interview(client, store, door, concurrency, bars)
            try:
                await interview.hold(plan, questions)
            except ServerError as error:
                kept = f"{len(store)} answers are kept in {folder.answers}; the same command goes on from there."
                raise RunError(f"{error}\n{kept}") from error
            finally:
                folder.write("failures.json", dumps([asdict(each) for each in interview.failures], indent=1))
    tell(interview.failures, console)
    return Outcome(folder, folder.conclude(plan, task, questions, client.base_url, door), interview.failures)


def announce(plan: Plan, questions: Sequence[Question], folder: Folder, console: Console) -> None:
    pictures = len({question.cluster for question in questions})
    seeds = f", seeds {', '.join(map(str, plan.seeds))}" if not plan.sampling.greedy else ", greedy"
    console.print(
        f"{plan.task}: {len(questions)} questions on {pictures} pictures, {plan.model}{seeds} → {folder.path}",
        highlight=False,
    )
    if plan.sampling.greedy and len(plan.seeds) > 1:
        console.print("Greedy answers do not depend on a seed: each question is asked once.")


def tell(failures: Sequence[Failure], console: Console) -> None:
    if not failures:
        return
    console.print(f"[red]{len(failures)} questions have no answer[/red]; the same command asks them again.")
    for reason, times in Counter(failure.reason for failure in failures).most_common(SHOWN):
        example = next(failure for failure in failures if failure.reason == reason)
        console.print(f"  {times}x {reason} (first: {example.question}, {example.strategy})", markup=False)


def default_folder(plan: Plan) -> Path:
    name = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in f"{plan.task}-{plan.model}")
    if not plan.sampling.greedy:
        name += f"-t{plan.sampling.temperature:g}"
    if plan.shard.of > 1:
        name += f"-{plan.shard.number}of{plan.shard.of}"
    return Path("runs") / name


def whole_numbers(text: str) -> tuple[int, ...]:
    """`0,1,2`. Raises: EvaluationError."""
    try:
        found = tuple(dict.fromkeys(int(piece) for piece in text.split(",") if piece.strip()))
    except ValueError:
        raise EvaluationError(f"--seeds: '{text}' should read 0,1,2.") from None
    if not found:
        raise EvaluationError("--seeds: name at least one.")
    return found
