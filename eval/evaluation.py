"""From answers to results. The same answers always give the same results, to the digit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.comparison import Comparison
from eval.cost import costs
from eval.errors import RunError
from eval.plan import Contender, Plan
from eval.question import Question
from eval.results import Column, Competitor, Part, Results
from eval.sheet import Sheet, sheet
from eval.store import Answer
from eval.tasks.task import Task


def evaluate(plan: Plan, task: Task, questions: list[Question], answers: Mapping[str, Answer]) -> tuple[Results, Sheet]:
    """Raises: RunError: there is no question that every strategy has answered."""
    marked = sheet(plan, task, questions, answers)
    if not marked.units:
        raise RunError("There is no question that every strategy has answered: nothing can be compared.")
    reference = next((each.label for each in plan.contenders if each.recipe.is_plain), plan.labels[0])
    scopes: list[str | None] = [*marked.scopes]
    if task.whole and len(scopes) > 1:
        scopes.append(None)
    parts = [Comparison(marked, task, scope, plan.contenders, reference).part() for scope in scopes]
    competitors = [competitor(each, task, marked) for each in plan.contenders]
    results = Results(
        task=task.name,
        title=task.title,
        model=plan.model,
        greedy=plan.sampling.greedy,
        seeds=list(plan.drawn_seeds),
        complete=not any(marked.missing.values()),
        columns=[Column.of(metric) for metric in task.metrics],
        competitors=competitors,
        parts=parts,
        costs=costs(marked, reference),
        warnings=warnings(plan, competitors, parts),
        tables=task.tables(
            [unit.question for unit in marked.units],
            {label: [answer.text for answer in column] for label, column in marked.answers.items()},
        ),
    )
    return results, marked


def competitor(contender: Contender, task: Task, marked: Sheet) -> Competitor:
    answers = marked.answers[contender.label]
    return Competitor(
        label=contender.label,
        parameters=contender.full.parameters,
        branches=contender.branches,
        controls=list(contender.controls),
        asked_for=contender.asked_for,
        answered=len(answers),
        missing=marked.missing[contender.label],
        empty=sum(not answer.text.strip() for answer in answers),
        cut_short=sum(answer.finish == "length" for answer in answers),
        notes=task.notes([unit.question for unit in marked.units], [answer.text for answer in answers]),
    )


def warnings(plan: Plan, competitors: Sequence[Competitor], parts: Sequence[Part]) -> list[str]:
    said = []
    for each in competitors:
        if each.missing:
            said.append(f"{each.label}: {each.missing} questions have no answer yet; they are left out for all.")
        if each.empty:
            said.append(f"{each.label}: {each.empty} answers are empty, and are scored as such.")
        if each.cut_short:
            said.append(
                f"{each.label}: {each.cut_short} of {each.answered} answers reached "
                f"--max-tokens {plan.sampling.max_tokens}."
            )
    said += [f"{row.strategy}, {part.scope}: {text}." for part in parts for row in part.rows for text in row.warnings]
    return said
