"""What a run asks: one task, the same questions and seeds for every recipe. It can be written down and made again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from eval.dataset import located
from eval.errors import EvaluationError, InputError
from eval.question import Question
from eval.recipe import Recipe
from eval.request import Request, Sampling, seed_of
from eval.tasks import load
from eval.tasks.options import Options
from eval.tasks.task import Task


class Shard(BaseModel):
    """`number` of `of`, counted from 1. Pictures are dealt out whole."""

    model_config = ConfigDict(frozen=True)

    number: int = 1
    of: int = 1

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if not 1 <= self.number <= self.of:
            raise EvaluationError(f"--shard {self.number}/{self.of}: the first number goes from 1 to the second.")
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        number, slash, of = text.partition("/")
        if not slash or not number.isdecimal() or not of.isdecimal():
            raise EvaluationError(f"--shard: '{text}' should read k/n, for example 1/4.")
        return cls(number=int(number), of=int(of))


class Contender(BaseModel):
    """A recipe of a run. A control runs beside those that it is matched to."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    full: Recipe  # with the server's defaults
    branches: int = 0  # rows beside the main one
    controls: tuple[str, ...] = ()  # labels of its matched controls
    asked_for: bool = True  # False: came in as a control

    @property
    def label(self) -> str:
        return self.recipe.label


class Plan(BaseModel):
    model_config = ConfigDict(frozen=True)

    task: str
    data: str
    model: str
    weights: str | None = None  # what the server calls their fingerprint
    contenders: tuple[Contender, ...]
    sampling: Sampling
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    shard: Shard = Shard()
    options: Options = Options()

    @property
    def labels(self) -> list[str]:
        return [contender.label for contender in self.contenders]

    @property
    def folder(self) -> Path:
        return located(self.data)

    def make_task(self) -> Task:
        return load(self.task, self.folder, self.options)

    def questions(self, task: Task) -> list[Question]:
        """The first `limit` of every scope, and of these the shard's.

        Raises: InputError: nothing is left.
        """
        scopes = [list(group) for _, group in groupby(task.questions(), key=lambda question: question.scope)]
        limited = [question for scope in scopes for question in scope[: self.limit]]
        pictures = {name: place for place, name in enumerate(sorted({question.cluster for question in limited}))}
        found = [each for each in limited if pictures[each.cluster] % self.shard.of == self.shard.number - 1]
        if not found:
            raise InputError("no question is left to ask", self.folder)
        return found

    def requests(self, contender: Contender, questions: list[Question]) -> Iterator[Request]:
        for seed in self.drawn_seeds:
            for question in questions:
                yield self.request(contender, question, seed)

    def request(self, contender: Contender, question: Question, seed: int | None) -> Request:
        drawn = None if seed is None else seed_of(seed, question)
        return Request(question, contender.recipe, contender.full, self.sampling, self.model, drawn, self.weights)

    @property
    def drawn_seeds(self) -> tuple[int | None, ...]:
        """Greedy answers do not depend on a seed."""
        return (None,) if self.sampling.greedy else self.seeds

    def same_but_for_the_shard(self, other: Plan) -> bool:
        return comparable(self) == comparable(other)


def comparable(plan: Plan) -> dict[str, Any]:
    return plan.model_dump(mode="json", exclude={"shard": {"number"}, "data": True})
