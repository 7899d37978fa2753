"""The scheduler on a batch without a model: order of requests, room in the KV cache, and API keys."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from decoding.hf_engine import scheduler as scheduler_module
from decoding.hf_engine.request import RequestStatus
from decoding.hf_engine.scheduler import Scheduler

CAPACITY = 8  # rows in the KV cache


class FakeBatch:
    """A batch whose KV cache holds `CAPACITY` rows of any length."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    @property
    def rows(self) -> list[Any]:
        return [request for request in self.requests for _ in range(request.rows)]

    @property
    def has_room_for_step(self) -> bool:
        return len(self.rows) <= CAPACITY

    def count_excess_rows(self, requests: Sequence[Any]) -> tuple[int, int]:
        rows = len(self.rows) + sum(request.rows for request in requests)
        return max(0, rows - CAPACITY), CAPACITY

    def remove_requests(self, requests: Sequence[Any]) -> None:
        removed = {id(request) for request in requests}
        self.requests = [request for request in self.requests if id(request) not in removed]


class FakeHandle:
    """A request with rows and a cache salt."""

    def __init__(self, name: str, rows: int, salt: str | None) -> None:
        self.name, self.status, self.blocked_since = name, RequestStatus.PENDING, None
        self.has_left = False
        source = SimpleNamespace(cache_salt=salt)
        self.request = SimpleNamespace(rows=rows, inputs={"main": range(10)}, source=source)
        self.reservation = SimpleNamespace(rows=rows)

    def advance(self, status: RequestStatus) -> None:
        self.status = status

    def leave(self) -> None:
        self.has_left = True


class SchedulerHarness:
    """A scheduler and its batch."""

    def __init__(self, max_rows: int = 64) -> None:
        self.scheduler, self.batch = Scheduler(max_rows), FakeBatch()

    def add(self, name: str, rows: int = 1, salt: str | None = None) -> None:
        self.scheduler.waiting.append(FakeHandle(name, rows, salt))  # type: ignore[arg-type]

    def step(self) -> str:
        """Schedule, and return the names of the requests that run, oldest first."""
        batch: Any = self.batch
        scheduled = self.scheduler.schedule(batch)
        self.batch.requests += [handle.request for handle in scheduled]
        self.scheduler.preempt(batch)
        return join_names(self.scheduler.running.values())

    def finish(self, name: str) -> None:
        batch: Any = self.batch
        self.scheduler.remove(batch, [each for each in self.scheduler.running.values() if join_names([each]) == name])

    @property
    def waiting(self) -> str:
        return join_names(self.scheduler.waiting)


def join_names(handles: Any) -> str:
    return " ".join(handle.name for handle in handles)


@pytest.fixture
def harness() -> SchedulerHarness:
    return SchedulerHarness()


def test_requests_run_in_their_order(harness: SchedulerHarness) -> None:
    for name, rows in [("a", 3), ("b", 4), ("c", 2), ("d", 1)]:
        harness.add(name, rows)
    assert harness.step() == "a b"  # d does not overtake c
    harness.finish("a")
    assert harness.step() == "b c d"


def test_rows_are_limited() -> None:
    harness = SchedulerHarness(max_rows=3)
    for name in "abcde":
        harness.add(name)
    assert harness.step() == "a b c"


def test_request_that_needs_more_than_the_cache_runs_alone(harness: SchedulerHarness) -> None:
    harness.add("a", 1)
    harness.add("b", CAPACITY + 1)
    assert harness.step() == "a"
    harness.finish("a")
    harness.add("c", 1)
    assert harness.step() == "b"
    assert harness.waiting == "c"


def test_newest_requests_are_preempted_and_join_again_first(harness: SchedulerHarness) -> None:
    for name in "abcd":
        harness.add(name, 2)
    harness.add("e")
    assert harness.step() == "a b c d"
    harness.batch.requests[0].rows = 5  # stands for rows that have grown
    assert harness.step() == "a b"
    assert harness.waiting == "c d e"
    preempted: list[Any] = list(harness.scheduler.waiting)
    assert not any(handle.has_left for handle in preempted)
    statuses = [handle.status for handle in harness.scheduler.waiting]
    assert statuses == [RequestStatus.PREEMPTED, RequestStatus.PREEMPTED, RequestStatus.PENDING]
    harness.finish("a")
    assert harness.step() == "b c d e"
    assert harness.scheduler.preemptions == 2


def test_other_key_gets_room_from_the_key_that_holds_more_than_half(harness: SchedulerHarness) -> None:
    for number in range(10):
        harness.add(f"a{number}", 1, "A")
    assert harness.step() == "a0 a1 a2 a3 a4 a5 a6 a7"
    for number in range(5):
        harness.add(f"b{number}", 1, "B")
    assert harness.step() == "a0 a1 a2 a3 b0 b1 b2 b3"
    assert harness.waiting == "a4 a5 a6 a7 a8 a9 b4"
    assert harness.step() == "a0 a1 a2 a3 b0 b1 b2 b3"  # neither key preempts the other any more
    harness.finish("b0")
    assert harness.step() == "a0 a1 a2 a3 b1 b2 b3 a4"
    assert harness.step() == "a0 a1 a2 a3 b1 b2 b3 b4"  # each key has its half
    assert harness.step() == "a0 a1 a2 a3 b1 b2 b3 b4"


def test_key_does_not_get_more_than_half_by_preemption(harness: SchedulerHarness) -> None:
    for number in range(8):
        harness.add(f"a{number}", 1, "A")
    harness.step()
    harness.add("b0", 5, "B")
    harness.add("b1", 1, "B")  # does not overtake b0
    assert harness.step() == "a0 a1 a2 a3 a4 a5 a6 a7"


def test_last_request_of_a_key_is_not_preempted(harness: SchedulerHarness) -> None:
    harness.add("a", CAPACITY, "A")
    assert harness.step() == "a"
    harness.add("b", 1, "B")
    assert harness.step() == "a"
    harness.batch.requests[0].rows = CAPACITY + 1
    assert harness.step() == "a"


def test_growing_rows_of_one_key_preempt_that_key(harness: SchedulerHarness) -> None:
    harness.add("a0", 3, "A")
    harness.add("a1", 3, "A")
    harness.add("b", 1, "B")
    assert harness.step() == "a0 a1 b"
    harness.batch.requests[0].rows = 6
    assert harness.step() == "a0 b"


def test_blocked_request_is_overtaken_for_a_limited_time(
    harness: SchedulerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.add("a0", 2, "A")
    harness.step()
    harness.add("a1", 7, "A")
    harness.add("b0", 1, "B")
    assert harness.step() == "a0 b0"
    now = scheduler_module.time.monotonic() + 11
    monkeypatch.setattr(scheduler_module.time, "monotonic", lambda: now)
    harness.add("b1", 1, "B")
    assert harness.step() == "a0 b0"
    harness.finish("a0")
    harness.finish("b0")
    assert harness.step() == "a1 b1"


def test_aborted_requests_are_dropped(harness: SchedulerHarness) -> None:
    for name in "abcd":
        harness.add(name, 4)
    assert harness.step() == "a b"
    handles: list[Any] = [*harness.scheduler.running.values(), *harness.scheduler.waiting]
    for handle in handles:
        if handle.name in "bc":
            handle.advance(RequestStatus.ABORTED)
    batch: Any = harness.batch
    harness.scheduler.drop_aborted(batch)
    assert [handle.name for handle in handles if handle.has_left] == ["b", "c"]
    assert (join_names(harness.scheduler.running.values()), harness.waiting, len(harness.batch.rows)) == ("a", "d", 4)
