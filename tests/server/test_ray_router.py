"""Ranking of Ray Serve's replicas by session id, without Ray's processes."""

from __future__ import annotations

import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():  # Ray's own models use what the installed Pydantic deprecates
    warnings.simplefilter("ignore")
    from server.ray_router import SessionRouter, find_session_id, rank_by_session

NAMES = ["a1", "b2", "c3"]


def make_request(*headers: tuple[bytes, bytes]) -> Any:
    scope = {"type": "http", "headers": [(b"host", b"x"), *headers]}
    return SimpleNamespace(args=[scope, b"body"], routing_context=SimpleNamespace(should_backoff=False))


def choose_first(session: int, names: list[str]) -> str:
    return names[rank_by_session(b"image-%d" % session, names)[0]]


@pytest.fixture
def router() -> SessionRouter:
    return SessionRouter.__new__(SessionRouter)  # without the event loop and the metrics of Ray


def test_sessions_are_spread_evenly_and_keep_their_replica() -> None:
    shares = Counter(choose_first(session, NAMES) for session in range(3000))
    assert all(900 < shares[name] < 1100 for name in NAMES)
    assert all(choose_first(session, NAMES) == choose_first(session, NAMES[::-1]) for session in range(100))


def test_lost_replica_moves_its_own_sessions_only() -> None:
    for session in range(200):
        before = choose_first(session, NAMES)
        if before != "b2":
            assert choose_first(session, ["a1", "c3"]) == before


def test_find_session_id_reads_the_header_of_a_call() -> None:
    assert find_session_id(make_request((b"x-session-id", b"image"))) == b"image"
    assert find_session_id(make_request((b"x-session-id", b""))) is None
    assert find_session_id(make_request()) is None
    assert find_session_id(SimpleNamespace(args=[])) is None  # type: ignore[arg-type]


async def test_full_replicas_come_after_the_one_of_the_session(router: SessionRouter) -> None:
    replicas: Any = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in NAMES]
    request = make_request((b"x-session-id", b"image-7"))
    ranked = await router.choose_replicas(replicas, request)
    assert [group[0].replica_id.unique_id for group in ranked] == [NAMES[n] for n in rank_by_session(b"image-7", NAMES)]
    assert request.routing_context.should_backoff


async def test_requests_without_a_session_go_to_one_of_two_replicas(router: SessionRouter) -> None:
    replicas: Any = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in NAMES]
    seen = set()
    for _ in range(100):
        (group,) = await router.choose_replicas(replicas, make_request())
        assert len(group) == 2
        seen |= {replica.replica_id.unique_id for replica in group}
    assert seen == set(NAMES)
    assert await router.choose_replicas(replicas[:1], None) == [replicas[:1]]
