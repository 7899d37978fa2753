"""Sends all requests of a plan that have no stored answer, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eval.core.answer_store import AnswerStore
from eval.core.task import BenchmarkQuestion
from eval.errors import RequestRejected, ServerError, ServerUnavailable
from eval.runs.client import EvalClient
from eval.runs.plan import Arm, RunPlan
from eval.runs.progress import ProgressBars
from eval.runs.request import EvalRequest, StrategyVia

FATAL_STATUSES = frozenset({401, 403, 404, 405})  # Every further request would be rejected, too.
MAX_CONSECUTIVE_FAILURES = 3  # for each request in flight; more failures in a row abort the run


@dataclass(frozen=True)
class FailedRequest:
    """A request without an answer. It is not scored, and the next run sends it again."""

    strategy: str
    question: str
    seed: int | None
    reason: str


class RunExecutor:
    """Executes a plan and stores the answers.

    Attributes:
        failures: Requests that have no answer.
    """

    def __init__(
        self,
        client: EvalClient,
        store: AnswerStore,
        strategy_via: StrategyVia,
        concurrency: int,
        progress: ProgressBars,
    ) -> None:
        self.failures: list[FailedRequest] = []
        self._client = client
        self._store = store
        self._strategy_via = strategy_via
        self._concurrency = concurrency
        self._progress = progress
        self._has_answer = False  # whether the current arm has at least one answer
        self._consecutive_failures = 0

    async def execute(self, plan: RunPlan, questions: list[BenchmarkQuestion]) -> None:
        """Send the requests arm by arm, so that times of different arms can be compared.

        After a fatal status or too many failures `ServerError` is raised. Stored answers are not lost.

        Args:
            plan: The plan.
            questions: The questions.
        """
        queues = [(arm, deduplicate(plan.iter_requests(arm, questions))) for arm in plan.arms]
        for arm, requests in queues:
            self._progress.add(arm.label, len(requests))
        for arm, requests in queues:
            await self._execute_arm(arm, requests)

    async def _execute_arm(self, arm: Arm, requests: list[EvalRequest]) -> None:
        pending = [request for request in requests if request.key not in self._store]
        self._has_answer = len(pending) < len(requests)
        self._progress.start(arm.label, len(requests) - len(pending))
        queue = iter(pending)
        # Send one request at a time until one succeeds: an error that concerns all requests aborts the run early.
        while not self._has_answer and (first := next(queue, None)):
            await self._send_requests(iter([first]))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(pending))):
                    group.create_task(self._send_requests(queue))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _send_requests(self, queue: Iterator[EvalRequest]) -> None:
        """Send requests one by one. An image is read when its request is sent, so few are in memory."""
        for request in queue:
            try:
                answer = await self._client.complete(request, self._strategy_via)
            except (RequestRejected, ServerUnavailable) as error:
                self._record_failure(request, error)
            else:
                self._store.add(answer)
                self._has_answer, self._consecutive_failures = True, 0
                self._progress.advance(request.spec.label)

    def _record_failure(self, request: EvalRequest, error: RequestRejected | ServerUnavailable) -> None:
        label = request.spec.label
        self.failures.append(FailedRequest(label, request.question.id, request.seed, str(error)))
        self._progress.add_failure(label)
        self._consecutive_failures += 1
        if isinstance(error, RequestRejected) and error.status in FATAL_STATUSES:
            raise ServerError(f"{label}: {error}")
        if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES * (self._concurrency if self._has_answer else 1):
            raise ServerError(f"too many failures, the last at {request.question.id} under {label}: {error}")


def deduplicate(requests: Iterable[EvalRequest]) -> list[EvalRequest]:
    """Remove requests with an equal key. The splits of POPE share questions."""
    by_key: dict[str, EvalRequest] = {}
    for request in requests:
        by_key.setdefault(request.key, request)
    return list(by_key.values())
