"""Run the matcher off the event loop, with waiting requests batched into one pass."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from decoding.errors import Unsupported
from decoding.matcher.model import Matcher
from decoding.outputs import RelevanceMap
from decoding.requests import RelevanceRequest

MAX_BATCH_SIZE = 8  # a larger pass takes longer on a CPU, and its first request would wait for its last
PendingRequest = tuple[RelevanceRequest, "Future[RelevanceMap]"]


class MatcherService:
    """Owns one thread. Requests that arrive during a pass share the next one."""

    def __init__(self) -> None:
        self.matcher: Matcher | None = None
        self._thread = ThreadPoolExecutor(1, "onlyseen-matcher")
        self._pending: list[PendingRequest] = []
        self._lock = Lock()

    async def load(self, source: str, device: str) -> None:
        """Load the matcher from a folder or hub id onto a device."""
        self.matcher = await asyncio.get_running_loop().run_in_executor(self._thread, Matcher, source, device)

    async def compute_relevance_map(self, request: RelevanceRequest) -> RelevanceMap:
        """Compute a relevance map.

        Returns:
            The map for the request's image and text.

        Raises:
            Unsupported: No matcher is loaded.
        """
        if self.matcher is None:
            message = "This server has no image-text matcher; start it with --matcher."
            raise Unsupported(message, param="decoding.strategy", code="unsupported")
        future: Future[RelevanceMap] = Future()
        with self._lock:
            self._pending.append((request, future))
        self._thread.submit(self._run_batch, self.matcher)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)

    def _run_batch(self, matcher: Matcher) -> None:
        with self._lock:
            batch, self._pending = self._pending[:MAX_BATCH_SIZE], self._pending[MAX_BATCH_SIZE:]
        self._compute(matcher, [entry for entry in batch if entry[1].set_running_or_notify_cancel()])

    def _compute(self, matcher: Matcher, batch: list[PendingRequest]) -> None:
        try:
            maps = matcher.compute_relevance_maps([request for request, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # retry one by one, so that only the failing request fails
                for entry in batch:
                    self._compute(matcher, [entry])
            return
        for (_, future), relevance_map in zip(batch, maps, strict=True):
            future.set_result(relevance_map)
