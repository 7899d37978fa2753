"""Evaluation of stored answers. The same answers always give the same results, to the last digit."""

from __future__ import annotations

from collections.abc import Sequence

from eval.analysis.bias_control import ScoredSamples, measure_bias
from eval.analysis.comparison import Comparison
from eval.analysis.cost import compute_costs
from eval.analysis.detection import measure_detection
from eval.analysis.score_table import ScoreTable, build_score_table
from eval.core.answer_store import ANSWERS_NAME, StoredAnswers, UnreadableLine, describe_unreadable
from eval.core.results import ArmSummary, MetricColumn, Results, ScopeResult
from eval.core.statistics import Bootstrap
from eval.core.task import BenchmarkQuestion, BenchmarkTask
from eval.errors import RunError
from eval.runs.plan import Arm, RunPlan


def evaluate(
    plan: RunPlan, task: BenchmarkTask, questions: list[BenchmarkQuestion], stored: StoredAnswers
) -> tuple[Results, ScoreTable]:
    """Score the answers and compare all arms.

    Args:
        plan: The plan.
        task: The task.
        questions: The questions of the plan.
        stored: The stored answers.

    Returns:
        The results and the scores.

    Raises:
        RunError: No question has an answer of every strategy, or the answers are not rated yet.
    """
    if task.needs_judge and plan.options.judge is None:
        raise RunError("The answers are not rated yet. `judge` has them rated by a model.")
    table = build_score_table(plan, task, questions, stored.by_key)
    if not table.samples:
        raise RunError("No question has an answer of every strategy, so there is nothing to compare.")
    reference = next((arm.label for arm in plan.arms if arm.spec.is_plain), plan.labels[0])
    scopes: list[str | None] = [*table.scopes]
    if task.overall_scope and len(scopes) > 1:
        scopes.append(None)
    scope_results = [Comparison(table, task, scope, plan.arms, reference).build_result() for scope in scopes]
    scored = ScoredSamples.select(table, task, plan, reference) if task.is_yes_no else None
    if scored and scored.table.samples:
        for result, bias in zip(scope_results, measure_bias(scored, scopes), strict=True):
            result.bias = bias
    draws = Bootstrap.draw(len(table.list_clusters(range(len(table.samples)))))
    detection = [measure_detection(table, label, draws) for label in plan.labels] if plan.check else []
    arms = [_summarize_arm(arm, task, table) for arm in plan.arms]
    results = Results(
        task=task.name,
        title=task.title,
        cluster=task.cluster,
        model=plan.model,
        greedy=plan.sampling.greedy,
        seeds=list(plan.effective_seeds),
        complete=not any(table.missing.values()),
        columns=[MetricColumn.from_metric(metric) for metric in task.metrics],
        arms=arms,
        scopes=scope_results,
        costs=compute_costs(table, reference),
        warnings=_collect_warnings(plan, arms, scope_results, stored.unreadable),
        tables=task.build_tables(
            [sample.question for sample in table.samples],
            {label: [answer.text for answer in column] for label, column in table.answers.items()},
        ),
        detection=[each for each in detection if each is not None],
        missing_bias=scored.missing_reason if scored else None,
    )
    return results, table


def _summarize_arm(arm: Arm, task: BenchmarkTask, table: ScoreTable) -> ArmSummary:
    answers = table.answers[arm.label]
    return ArmSummary(
        label=arm.label,
        parameters=arm.full_spec.parameters,
        branches=arm.branches,
        controls=list(arm.controls),
        requested=arm.requested,
        answered=len(answers),
        missing=table.missing[arm.label],
        empty=sum(not answer.text.strip() for answer in answers),
        truncated=sum(answer.finish == "length" for answer in answers),
        notes=task.summarize_answers(
            [sample.question for sample in table.samples], [answer.text for answer in answers]
        ),
    )


def _collect_warnings(
    plan: RunPlan, arms: Sequence[ArmSummary], scopes: Sequence[ScopeResult], unreadable: Sequence[UnreadableLine]
) -> list[str]:
    warnings = [describe_unreadable(ANSWERS_NAME, unreadable)] if unreadable else []
    lacking = "answer or no verdict" if plan.options.judge else "answer"
    for arm in arms:
        if arm.missing:
            warnings.append(
                f"{arm.label}: {arm.missing} questions have no {lacking} yet. They are left out for all strategies."
            )
        if arm.empty:
            warnings.append(f"{arm.label}: {arm.empty} answers are empty. They are scored as empty answers.")
        if arm.truncated:
            warnings.append(
                f"{arm.label}: {arm.truncated} of {arm.answered} answers reached "
                f"--max-tokens {plan.sampling.max_tokens}."
            )
    return warnings + [
        f"{row.strategy}, {scope.scope}: {text}." for scope in scopes for row in scope.rows for text in row.warnings
    ]
