"""Puts every request that is not answered yet to the server, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from eval.client import Client
from eval.errors import Refused, ServerError, Unavailable
from eval.plan import Contender, Plan
from eval.progress import Bars
from eval.question import Question
from eval.request import Request
from eval.store import Store

FATAL = frozenset({401, 403, 404, 405})  # the next request would fare no better
IN_A_ROW = 3  # failures with no answer between them, of each that asks: then it is the server


@dataclass(frozen=True)
class Failure:
    """No answer: not scored, and asked again by the next run."""

    strategy: str
    question: str
    seed: int | None
    reason: str


class Interview:
    def __init__(self, client: Client, store: Store, door: str, concurrency: int, bars: Bars) -> None:
        self.failures: list[Failure] = []
        self._client = client
        self._store = store
        self._door = door
        self._concurrency = concurrency
        self._bars = bars
        self._answered = False  # the strategy at hand, at least once
        self._in_a_row = 0

    async def hold(self, plan: Plan, questions: list[Question]) -> None:
        """One strategy after the other, so that their speeds can be compared.

        Raises: ServerError: it is no use to go on. What was answered is kept.
        """
        queues = [(contender, distinct(plan.requests(contender, questions))) for contender in plan.contenders]
        for contender, requests in queues:
            self._bars.add(contender.label, len(requests))
        for contender, requests in queues:
            await self._ask_all(contender, requests)

    async def _ask_all(self, contender: Contender, requests: list[Request]) -> None:
        waiting = [request for request in requests if request.key not in self._store]
        self._answered = len(waiting) < len(requests)
        self._bars.start(contender.label, len(requests) - len(waiting))
        queue = iter(waiting)
        while not self._answered and (scout := next(queue, None)):  # what no request can have is found out early
            await self._work(iter([scout]))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(waiting))):
                    group.create_task(self._work(queue))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(self, queue: Iterator[Request]) -> None:
        """Takes the next request only when it is free for it: pictures are read when they are sent."""
        for request in queue:
            try:
                answer = await self._client.ask(request, self._door)
            except (Refused, Unavailable) as error:
                self._fail(request, error)
            else:
                self._store.add(answer)
                self._answered, self._in_a_row = True, 0
                self._bars.advance(request.recipe.label)

    def _fail(self, request: Request, error: Refused | Unavailable) -> None:
        label = request.recipe.label
        self.failures.append(Failure(label, request.question.id, request.seed, str(error)))
        self._bars.fail(label)
        self._in_a_row += 1
        if isinstance(error, Refused) and error.status in FATAL:
            raise ServerError(f"{label}: {error}")
        if self._in_a_row >= IN_A_ROW * (self._concurrency if self._answered else 1):
            raise ServerError(f"gave up at {request.question.id} under {label}: {error}")


def distinct(requests: Iterator[Request]) -> list[Request]:
    """Splits of POPE share questions: what is the same in all that counts is asked once."""
    first: dict[str, Request] = {}
    for request in requests:
        first.setdefault(request.key, request)
    return list(first.values())
