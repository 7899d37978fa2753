"""The scheduler of the transformers engine: which requests run, within the rows and the KV cache."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence

from decoding.hf_engine.batch import Batch
from decoding.hf_engine.prefill import PREFILL_TOKENS
from decoding.hf_engine.request import RequestHandle, RequestStatus

MAX_OVERTAKEN_SECONDS = 10.0  # in which requests of other groups may overtake a request that has no room


class Scheduler:
    """Schedules requests, first in, first out, and preempts requests if the KV cache is full.

    Requests with one cache salt, that is one API key, form a group. Those without a salt form one group, too. While a
    request has no room in the KV cache, requests of other groups may overtake it. If the running rows outgrow the KV
    cache, the newest request of the group with the most rows is preempted. The only running request of a group is
    preempted only if no group has several. If a group holds more than half of the KV cache, its newest requests are
    preempted for a waiting request of another group, but not its last one. Within a group, no request overtakes
    another.

    Attributes:
        waiting: Requests that wait. Preempted ones are at the front.
        running: Requests in the batch by the id of their `RequestState`, oldest first.
        preemptions: Number of preemptions since the start.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.waiting: deque[RequestHandle] = deque()
        self.running: dict[int, RequestHandle] = {}
        self.preemptions = 0

    def drop_aborted(self, batch: Batch) -> None:
        """Drop aborted requests, and free their rows."""

        def is_aborted(handle: RequestHandle) -> bool:
            return handle.status is RequestStatus.ABORTED

        self.remove(batch, [handle for handle in self.running.values() if is_aborted(handle)])
        for handle in tuple(filter(is_aborted, self.waiting)):  # another thread aborts them
            self.waiting.remove(handle)
            handle.leave()

    def remove(self, batch: Batch, handles: Sequence[RequestHandle]) -> None:
        """Remove running requests. They do not come back."""
        self._take_out(batch, handles)
        for handle in handles:
            handle.leave()

    def _take_out(self, batch: Batch, handles: Sequence[RequestHandle]) -> None:
        if handles:
            batch.remove_requests([handle.request for handle in handles])
            for handle in handles:
                del self.running[id(handle.request)]

    def schedule(self, batch: Batch) -> list[RequestHandle]:
        """Choose the waiting requests that join the batch now.

        The limits are `max_rows`, the KV cache, and one pass of prompts, so that prefill does not stall decoding. A
        request that needs more of the KV cache than there is runs alone.

        Args:
            batch: The running batch. Requests may be preempted from it.

        Returns:
            The requests, which count as running from now on.
        """
        scheduled: list[RequestHandle] = []
        blocked: set[str | None] = set()  # salts of the groups with a request that has no room
        rows, tokens = self.max_rows - len(batch.rows), PREFILL_TOKENS
        for handle in tuple(self.waiting):
            if get_salt(handle) in blocked:
                continue
            prompt_tokens = sum(map(len, handle.request.inputs.values()))
            if handle.reservation.rows > rows or (prompt_tokens > tokens and scheduled):
                break
            if not self._make_room(batch, [*scheduled, handle]):
                blocked.add(get_salt(handle))
                handle.blocked_since = handle.blocked_since or time.monotonic()
                if time.monotonic() > handle.blocked_since + MAX_OVERTAKEN_SECONDS:
                    break
                continue
            rows, tokens = rows - handle.reservation.rows, tokens - prompt_tokens
            handle.blocked_since = None
            handle.advance(RequestStatus.PREFILLING)
            self.waiting.remove(handle)
            scheduled.append(handle)
        self.running |= {id(handle.request): handle for handle in scheduled}
        return scheduled

    def preempt(self, batch: Batch) -> None:
        """Preempt requests until the KV cache has room for a step. They join again first.

        It is the newest request of the group with the most rows, among the groups with several running requests. If
        there is no such group, it is the newest of all requests.
        """
        while len(self.running) > 1 and not batch.has_room_for_step:
            groups = [group for group in self._group_by_salt().values() if len(group) > 1]
            self._preempt(batch, max(groups, key=count_rows, default=list(self.running.values()))[-1])

    def _make_room(self, batch: Batch, handles: Sequence[RequestHandle]) -> bool:
        """Return whether the KV cache has room for requests. The last one may preempt requests of another group.

        Args:
            batch: The running batch.
            handles: Requests that join it.
        """
        if len(handles) == 1 and not batch.rows:
            return True
        excess, capacity = batch.count_excess_rows([handle.request for handle in handles])
        if excess == 0:
            return True
        groups, salt = self._group_by_salt(), get_salt(handles[-1])
        largest = max((group for other, group in groups.items() if other != salt), key=count_rows, default=[])
        own_rows = count_rows([*groups.get(salt, ()), *(handle for handle in handles if get_salt(handle) == salt)])
        preempted: list[RequestHandle] = []
        for handle in reversed(largest[1:]):
            if count_rows(preempted) >= excess or 2 * (count_rows(largest) - count_rows(preempted)) <= capacity:
                break
            preempted.append(handle)
        if count_rows(preempted) < excess or 2 * own_rows > capacity:
            return False
        for handle in preempted:
            self._preempt(batch, handle)
        return True

    def _preempt(self, batch: Batch, handle: RequestHandle) -> None:
        self._take_out(batch, [handle])
        handle.advance(RequestStatus.PREEMPTED)
        self.waiting.appendleft(handle)
        self.preemptions += 1

    def _group_by_salt(self) -> dict[str | None, list[RequestHandle]]:
        """Return the running requests of each group by its salt, oldest first."""
        groups: dict[str | None, list[RequestHandle]] = defaultdict(list)
        for handle in self.running.values():
            groups[get_salt(handle)].append(handle)
        return groups


def get_salt(handle: RequestHandle) -> str | None:
    """Return the cache salt of a request, which its group shares."""
    return handle.request.source.cache_salt


def count_rows(handles: Sequence[RequestHandle]) -> int:
    """Count the rows of requests, lazy branches included."""
    return sum(handle.reservation.rows for handle in handles)
