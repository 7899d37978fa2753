"""Samples of questions that are spread over images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from eval.core.task import BenchmarkQuestion
from eval.runs.plan import RunPlan
from eval.runs.question_sample import sample_questions


def make_question(scope: str, image: str, number: int, label: str, group: str | None = None) -> BenchmarkQuestion:
    return BenchmarkQuestion(
        f"{scope}/{image}/{number}", scope, Path(f"images/{image}"), "Is it?", {"label": label}, group
    )


QUESTIONS = [
    make_question(scope, image, number, "no" if number % 2 else "yes")
    for scope in ("random", "popular")
    for image in "abcd"
    for number in range(6)
]
# In the order of their selection: strata in turn, of the least used images, the smallest SHA-256 of "0|id".
EXPECTED = [
    "popular/b/5",
    "popular/d/0",
    "random/a/3",
    "random/c/0",
    "popular/d/5",
    "popular/b/0",
    "random/c/3",
    "random/a/4",
]


def list_ids(questions: list[BenchmarkQuestion]) -> list[str]:
    return [question.id for question in questions]


def test_a_sample_uses_all_images_alike() -> None:
    """The first four questions of each scope would be about one image."""
    found = sample_questions(QUESTIONS, 4)
    assert sorted(list_ids(found)) == sorted(EXPECTED)
    assert Counter(question.cluster for question in found) == dict.fromkeys((f"images/{image}" for image in "abcd"), 2)
    assert Counter((question.scope, question.truth["label"]) for question in found) == {
        (scope, label): 2 for scope in ("random", "popular") for label in ("yes", "no")
    }


def test_questions_keep_the_order_of_the_task() -> None:
    assert list_ids(sample_questions(QUESTIONS, 100)) == list_ids(QUESTIONS)
    order = list_ids(QUESTIONS)
    positions = [order.index(id) for id in list_ids(sample_questions(QUESTIONS, 5))]
    assert positions == sorted(positions)


@pytest.mark.parametrize("limit", range(1, 24))
def test_a_larger_sample_contains_a_smaller_one(limit: int) -> None:
    smaller, larger = (set(list_ids(sample_questions(QUESTIONS, number))) for number in (limit, limit + 1))
    assert len(smaller) == 2 * limit
    assert smaller < larger


def test_another_seed_gives_another_sample() -> None:
    assert sample_questions(QUESTIONS, 4, seed=1) != sample_questions(QUESTIONS, 4)


def test_questions_that_are_scored_together_enter_together() -> None:
    pairs = [
        make_question("existence", image, number, label, f"pair {image}")
        for image in "abcdef"
        for number, label in ((1, "yes"), (2, "no"))
    ]
    found = sample_questions(pairs, 5)
    assert Counter(question.group for question in found) == dict.fromkeys({each.group for each in found}, 2)
    assert len(found) == 6  # the last pair is complete


def test_a_plan_of_a_former_version_keeps_the_first_questions() -> None:
    stored = {"task": "pope", "data": "embedded", "model": "m", "arms": [], "sampling": {"max_tokens": 8}, "limit": 3}
    plan = RunPlan.model_validate(stored)
    questions = plan.select_questions(plan.load_task())
    assert list_ids(questions)[:3] == ["random/1", "random/2", "random/3"]
    sampled = plan.model_copy(update={"limit_selects": "sample"})
    assert len({each.cluster for each in sampled.select_questions(plan.load_task())}) == 9
