"""`eval compare`: two finished runs, paired where their questions agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from eval.analysis.paired_columns import ColumnPair, RunComparison, compare_columns
from eval.analysis.score_table import Sample, ScoreTable, score_texts
from eval.core.answer_store import StoredAnswer
from eval.core.results import MetricColumn
from eval.core.task import BenchmarkQuestion
from eval.errors import RunError
from eval.runs.plan import Arm
from eval.workflows.finished_run import FinishedRun

MIN_SHARED = 0.5  # share of the smaller run's questions
MAX_NAMED = 3  # questions that an error names
TASK_SETTINGS = ("parser", "variant", "similarity")  # options that change the scores

Seed = int | None


@dataclass(frozen=True)
class ArmPair:
    """A strategy of the first run, and the one of the second run that is compared with it."""

    first: Arm
    second: Arm

    @property
    def columns(self) -> ColumnPair:
        """The labels of both in the table of scores."""
        return ColumnPair(first=f"A: {self.first.label}", second=f"B: {self.second.label}")


@dataclass(frozen=True)
class SharedQuestions:
    """The questions of two runs.

    Attributes:
        pairs: Questions that both runs have, in the order of the first run.
        only_first: Number of questions of the first run that the second lacks.
        only_second: Number of questions of the second run that the first lacks.
    """

    pairs: list[tuple[BenchmarkQuestion, BenchmarkQuestion]]
    only_first: int
    only_second: int


def compare_runs(
    first: Path,
    second: Path,
    strategies: tuple[str | None, str | None] = (None, None),
    data: str | None = None,
) -> RunComparison:
    """Compare the answers of two runs. Runs that cannot be scored again raise `EvaluationError`.

    Args:
        first: Folder of the first run, whose values are subtracted.
        second: Folder of the second run.
        strategies: Labels of one strategy of each run. None of both compares all strategies that both runs have.
        data: Current data folder, if it has moved.

    Returns:
        The comparison.

    Raises:
        RunError: The runs have different tasks, options or labels, or share too little.
    """
    runs = FinishedRun.load(first, data), FinishedRun.load(second, data)
    check_comparable(*runs)
    runs[0].task.add_verdicts(runs[1].directory.load_verdicts())
    arms = pair_arms(*runs, strategies)
    shared = join_questions(*runs)
    table, lacking = build_paired_table(*runs, shared.pairs, arms)
    if not table.samples:
        raise RunError(f"{first} and {second} have no question that all compared strategies have answered.")
    task = runs[0].task
    return RunComparison(
        task=task.name,
        title=task.title,
        cluster=task.cluster,
        first=str(first),
        second=str(second),
        columns=[MetricColumn.from_metric(metric) for metric in task.metrics],
        scopes=compare_columns(table, task, [pair.columns for pair in arms]),
        seeds=len(table.seeds),
        unequal=list_unequal_settings(*runs, arms),
        not_shared=_list_not_shared(runs, arms, shared, lacking),
    )


def check_comparable(first: FinishedRun, second: FinishedRun) -> None:
    """Check that two runs score the same answers alike.

    Args:
        first: The first run.
        second: The second run.

    Raises:
        RunError: They have different tasks, options of the scorer, or files with ground truth.
    """
    folders = first.directory.path, second.directory.path
    if first.plan.task != second.plan.task:
        tasks = f"{folders[0]} is a run of {first.plan.task}, {folders[1]} of {second.plan.task}"
        raise RunError(f"{tasks}. Only runs of one task can be compared.")
    for name in TASK_SETTINGS:
        values = [getattr(run.plan.options, name) for run in (first, second)]
        if values[0] != values[1]:
            raise RunError(f"{folders[0]} has --{name} {values[0]}, {folders[1]} has --{name} {values[1]}.")
    if first.plan.options.judge != second.plan.options.judge:
        raise RunError(f"{folders[0]} and {folders[1]} were rated by other judges, or with other prompts.")
    if first.task.is_yes_no:  # The labels are in the questions, which are compared one by one.
        return
    files = first.manifest.files, second.manifest.files
    if changed := sorted(
        name for name in files[0].keys() | files[1].keys() if files[0].get(name) != files[1].get(name)
    ):
        raise RunError(f"{folders[0]} and {folders[1]} were scored with other files: {', '.join(changed)}.")


def pair_arms(
    first: FinishedRun, second: FinishedRun, strategies: tuple[str | None, str | None] = (None, None)
) -> list[ArmPair]:
    """Pair the strategies of two runs. A label that a run does not have raises `RunError`.

    Args:
        first: The first run.
        second: The second run.
        strategies: Labels of one strategy of each run. If one is None, it is the other. If both are None, all
            strategies that both runs have are paired.

    Returns:
        The pairs, in the order of the first run.

    Raises:
        RunError: The runs have no strategy in common.
    """
    labels = [(label, label) for label in first.plan.labels if label in second.plan.labels]
    if strategies != (None, None):
        labels = [(strategies[0] or str(strategies[1]), strategies[1] or str(strategies[0]))]
    if not labels:
        raise RunError(
            f"{first.directory.path} has {', '.join(first.plan.labels)}, and {second.directory.path} has "
            f"{', '.join(second.plan.labels)}. Name one of each with --strategy-a and --strategy-b."
        )
    return [ArmPair(first.get_arm(one), second.get_arm(other)) for one, other in labels]


def join_questions(first: FinishedRun, second: FinishedRun) -> SharedQuestions:
    """Join the questions of two runs by scope, id and image.

    Questions that are scored together are shared only together.

    Args:
        first: The first run.
        second: The second run.

    Returns:
        The shared questions.

    Raises:
        RunError: A shared question has another prompt or another label, or too few questions are shared.
    """
    of_second = {(each.scope, each.id, each.image_hash): each for each in second.questions}
    pairs = [
        (question, other)
        for question in first.questions
        if (other := of_second.get((question.scope, question.id, question.image_hash)))
    ]
    _check_agreement(first, second, pairs)
    incomplete = _list_incomplete_groups(first.questions, (one for one, _ in pairs))
    incomplete |= _list_incomplete_groups(second.questions, (other for _, other in pairs))
    pairs = [(one, other) for one, other in pairs if (one.scope, one.group) not in incomplete]
    if len(pairs) < MIN_SHARED * min(len(first.questions), len(second.questions)) or not pairs:
        raise RunError(
            f"{first.directory.path} and {second.directory.path} share {len(pairs)} of {len(first.questions)} and "
            f"{len(second.questions)} questions. A comparison needs {MIN_SHARED:.0%} of the smaller run."
        )
    return SharedQuestions(pairs, len(first.questions) - len(pairs), len(second.questions) - len(pairs))


def _check_agreement(
    first: FinishedRun, second: FinishedRun, pairs: Sequence[tuple[BenchmarkQuestion, BenchmarkQuestion]]
) -> None:
    folders = f"{first.directory.path} and {second.directory.path}"
    for name, values in (
        ("prompt", [(one.prompt, other.prompt, one.id) for one, other in pairs]),
        ("label", [(one.truth, other.truth, one.id) for one, other in pairs]),
    ):
        if unequal := [id for one, other, id in values if one != other]:
            raise RunError(
                f"{folders} have {len(unequal)} questions with another {name} ({', '.join(unequal[:MAX_NAMED])}). "
                + ("Their answers cannot be compared." if name == "prompt" else "Score one of them with `rescore`.")
            )


def _list_incomplete_groups(
    questions: Iterable[BenchmarkQuestion], shared: Iterable[BenchmarkQuestion]
) -> set[tuple[str, str | None]]:
    """List the groups of questions of which some are not shared."""
    ids = {question.id for question in shared}
    return {(each.scope, each.group) for each in questions if each.group is not None and each.id not in ids}


def pair_seeds(first: Sequence[Seed], second: Sequence[Seed]) -> list[tuple[Seed, Seed]]:
    """Pair the seeds of two runs: equal ones, else each with each, so that means over the seeds are compared."""
    if set(first) == set(second):
        return [(seed, seed) for seed in first]
    return list(product(first, second))


def build_paired_table(
    first: FinishedRun,
    second: FinishedRun,
    questions: Sequence[tuple[BenchmarkQuestion, BenchmarkQuestion]],
    arms: Sequence[ArmPair],
) -> tuple[ScoreTable, int]:
    """Look up and score the answers of both runs to the shared questions.

    Args:
        first: The first run. Its task scores both.
        second: The second run.
        questions: The shared questions.
        arms: The strategies.

    Returns:
        The table with a column for each strategy of each run, and the number of answers that were left out because
        another strategy has none. The seed of a sample is the number of the pair of seeds.
    """
    columns: dict[str, list[StoredAnswer | None]] = {}
    samples: list[Sample] = []
    for number, (seed, other_seed) in enumerate(pair_seeds(first.plan.effective_seeds, second.plan.effective_seeds)):
        samples += [Sample(question, number) for question, _ in questions]
        for pair in arms:
            columns.setdefault(pair.columns.first, []).extend(
                first.find_scorable_answer(pair.first, question, seed) for question, _ in questions
            )
            columns.setdefault(pair.columns.second, []).extend(
                second.find_scorable_answer(pair.second, question, other_seed) for _, question in questions
            )
    unanswered = [any(column[index] is None for column in columns.values()) for index in range(len(samples))]
    # Questions that are scored together are left out together.
    left_out = {sample.joint_key for sample, lacks in zip(samples, unanswered, strict=True) if lacks}
    kept = [index for index, sample in enumerate(samples) if sample.joint_key not in left_out]
    answers = {label: [answer for index in kept if (answer := column[index])] for label, column in columns.items()}
    kept_samples = [samples[index] for index in kept]
    scores = {
        label: score_texts(first.task, kept_samples, [answer.text for answer in column])
        for label, column in answers.items()
    }
    return ScoreTable(kept_samples, answers, scores, missing={}), len(samples) - len(kept)


def list_unequal_settings(first: FinishedRun, second: FinishedRun, arms: Sequence[ArmPair]) -> list[str]:
    """List the settings that differ, as `name: value of the first run; value of the second run`."""

    def describe(run: FinishedRun) -> dict[str, str]:
        sampling = run.plan.sampling
        return {
            "model": run.plan.model,
            "weights": run.plan.weights or "not known",
            "temperature": f"{sampling.temperature:g}",
            "top_p": f"{sampling.top_p:g}",
            "max_tokens": str(sampling.max_tokens),
            "seeds": ", ".join(map(str, run.plan.effective_seeds)),
            "check": str(run.plan.check),
        }

    values = describe(first), describe(second)
    return [
        f"{name}: {values[0][name]}; {values[1][name]}" for name in values[0] if values[0][name] != values[1][name]
    ] + [
        f"default parameters of {pair.first.label}"
        for pair in arms
        if pair.first.label == pair.second.label and pair.first.full_spec.parameters != pair.second.full_spec.parameters
    ]


def _list_not_shared(
    runs: tuple[FinishedRun, FinishedRun], arms: Sequence[ArmPair], shared: SharedQuestions, lacking: int
) -> list[str]:
    compared = {pair.first.label for pair in arms}, {pair.second.label for pair in arms}
    lines: list[str] = []
    for run, labels, questions in zip(runs, compared, (shared.only_first, shared.only_second), strict=True):
        if others := [label for label in run.plan.labels if label not in labels]:
            lines.append(f"{run.directory.path} has strategies that are not compared: {', '.join(others)}")
        if questions:
            lines.append(f"{run.directory.path} has {questions} questions that are not shared")
    if lacking:
        lines.append(f"{lacking} answers are left out, because a strategy has no answer to the question")
    return lines
