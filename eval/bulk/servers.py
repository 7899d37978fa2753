"""The servers of a job. Requests about a picture go to one of them, whose caches then hold the picture."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from eval.bulk.items import BulkItem, JobSettings
from eval.bulk.rows import BulkRow, build_error_row, build_row
from eval.errors import InvalidResponse, RequestRejected, ServerError, ServerUnavailable
from eval.runs.client import EvalClient
from eval.runs.preparation import select_model
from eval.runs.request import EvalRequest, SamplingSettings, StrategyVia
from eval.runs.stack_spec import PLAIN, StackSpec

FATAL_STATUSES = frozenset({401, 403, 404, 405})  # Every further request would be rejected, too.
BUSY_STATUSES = frozenset({429, 503})  # a full queue, or an engine that loads its model
STRATEGY_PARAMETER = re.compile(r"decoding\.\w+\.\w+")
MAX_PAUSE = 30.0  # seconds for which a failing server gets no requests


@dataclass(frozen=True)
class JobPlan:
    """The settings of a job, completed by what the servers report.

    Attributes:
        settings: The settings.
        full_spec: The stack with the defaults of the server, which receipts have to agree with.
        strategy_via: How requests select their strategy.
    """

    settings: JobSettings
    full_spec: StackSpec
    strategy_via: StrategyVia


async def prepare_job(
    clients: Sequence[EvalClient],
    model: str | None,
    spec: StackSpec,
    sampling: SamplingSettings,
    seed: int,
    check: bool,
    engine: tuple[str, ...] | None = None,
) -> JobPlan:
    """Compare the servers, and complete the settings of the job.

    Args:
        clients: Open clients of the servers.
        model: Name of the model, None for the only one.
        spec: The stack.
        sampling: Sampling parameters.
        seed: Seed of the job.
        check: Have claims checked.
        engine: Arguments of the job's own engines.

    Returns:
        The plan.

    Raises:
        ServerError: A server lacks the model or the strategy, or the weights of two servers differ.
    """
    plans = []
    for client in clients:
        models = await client.list_models()
        catalog = await client.fetch_catalog()
        if catalog is not None:
            catalog.check(spec)
        elif spec != PLAIN or check:
            raise ServerError(f"{client.base_url} has no /v1/strategies, so only plain decoding without --check works.")
        name = select_model(list(models), model)
        settings = JobSettings(
            model=name,
            weights=models.get(name),
            spec=spec,
            sampling=sampling,
            seed=seed,
            check=check,
            engine=engine,
        )
        full_spec = catalog.with_defaults(spec) if catalog else PLAIN
        plans.append(JobPlan(settings, full_spec, "body" if catalog else "none"))
    first, *others = plans
    for client, plan in zip(clients[1:], others, strict=True):
        if plan != first:
            field = first.settings.find_difference(plan.settings) or "strategies"
            raise ServerError(f"{client.base_url} and {clients[0].base_url} differ in {field}.")
    return first


class PooledServer:
    """A server, its requests in flight, and the time until which it gets no new ones."""

    def __init__(self, client: EvalClient, slots: int) -> None:
        self.client = client
        self.in_flight = 0
        self._slots = slots
        self._paused_until = 0.0
        self._failures = 0  # in a row

    @property
    def is_free(self) -> bool:
        """Whether it takes a request now."""
        return self.in_flight < self._slots and time.monotonic() >= self._paused_until

    def reset(self) -> None:
        """End the row of failures."""
        self._failures, self._paused_until = 0, 0.0

    def pause(self, retry_after: float, longest: float) -> None:
        """Send no requests for a while, which doubles with every failure in a row.

        Requests that were in flight together fail together, and count as one failure.
        """
        if time.monotonic() < self._paused_until:
            return
        seconds = min(max(retry_after, self.client.retry_pause * 2.0**self._failures), longest)
        self._failures = min(self._failures + 1, 16)
        self._paused_until = time.monotonic() + seconds


class ServerPool:
    """Gets the row of each item from one of several servers.

    A failed request goes to a server again, to another one if there is one. It counts against its item only if a
    server is up afterwards. So a server may restart during a job, and a picture that breaks servers ends as an error.
    """

    def __init__(
        self, clients: Sequence[EvalClient], plan: JobPlan, slots: int, retries: int = 5, patience: float = 600.0
    ) -> None:
        """Create a pool.

        Args:
            clients: Open clients of the servers.
            plan: The plan of the job.
            slots: Requests in flight at each server.
            retries: Failures of an item that are tried again.
            patience: Seconds without any answer after which the job ends.
        """
        self._servers = [PooledServer(client, slots) for client in clients]
        for client in clients:
            client.attempts = 1  # the pool tries again, at another server if it can
        self._plan = plan
        self._retries = retries
        self._patience = patience
        self._last_answer = time.monotonic()
        self._released = asyncio.Event()

    async def get_row(self, item: BulkItem) -> BulkRow:
        """Get the row of an item: its answer, or the error if it is refused or fails again and again.

        `ServerError` ends the job: every further request would be refused, or no server answers any more.

        Args:
            item: The item.

        Returns:
            The row.
        """
        settings = self._plan.settings
        if (problem := item.find_problem()) is not None:
            return build_error_row(item, settings, problem)
        request = settings.build_request(item, self._plan.full_spec)
        start, failures = time.monotonic(), 0
        while True:
            server = await self._acquire(item.image_hash or item.id)
            try:
                answer = await server.client.complete(request, self._plan.strategy_via)
            except RequestRejected as error:
                self._record_answer(server)
                require_item_error(error)
                return build_error_row(item, settings, str(error))
            except ServerUnavailable as error:
                failures += await self._count_failure(server, request, error)
                if failures > self._retries:
                    return build_error_row(item, settings, str(error))
                self._require_patience(start, error)
            else:
                self._record_answer(server)
                return build_row(item, settings, answer)
            finally:
                server.in_flight -= 1
                self._released.set()

    def _record_answer(self, server: PooledServer) -> None:
        self._last_answer = time.monotonic()
        server.reset()

    async def _count_failure(self, server: PooledServer, request: EvalRequest, error: ServerUnavailable) -> int:
        """Return 1 if the failure counts against its item: the server is up, and is not merely busy."""
        if isinstance(error, InvalidResponse):
            self._last_answer = time.monotonic()
            return 1
        server.pause(error.retry_after, min(MAX_PAUSE, self._patience / 2))
        if error.status in BUSY_STATUSES:
            return 0
        await asyncio.sleep(server.client.retry_pause)
        try:
            await server.client.list_models()
        except ServerError:
            return 0
        return 1

    def _require_patience(self, start: float, error: ServerUnavailable) -> None:
        if time.monotonic() - max(start, self._last_answer) > self._patience:
            raise ServerError(f"no answer for {self._patience:g} s, the last error: {error}")

    async def _acquire(self, picture: str) -> PooledServer:
        """Wait for a server. The servers of a picture have a fixed order, and the first free one gets the request."""
        ranked = sorted(self._servers, key=lambda server: rank_server(picture, server.client.base_url))
        while True:
            for server in ranked:
                if server.is_free:
                    server.in_flight += 1
                    return server
            self._released.clear()
            try:
                async with asyncio.timeout(0.2):  # the pause of a server may end meanwhile
                    await self._released.wait()
            except TimeoutError:
                pass


def require_item_error(error: RequestRejected) -> None:
    """End the job if every further request would be refused, too.

    Args:
        error: The refusal.

    Raises:
        ServerError: The refusal does not depend on the item.
    """
    # `decoding.vcd.alpha` does not depend on the item, but `decoding.strategy` may not suit a long prompt.
    if error.status in FATAL_STATUSES or STRATEGY_PARAMETER.fullmatch(error.param or ""):
        raise ServerError(str(error)) from None


def rank_server(picture: str, url: str) -> bytes:
    """Compute the rank of a server for a picture (rendezvous hashing): a lost server moves only its own pictures."""
    return hashlib.sha256(f"{picture}\0{url}".encode()).digest()
