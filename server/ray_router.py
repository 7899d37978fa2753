"""Routing of Ray Serve: requests with one session id go to one replica, whose caches then hold their image."""

from __future__ import annotations

import hashlib
import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SESSION_HEADER = b"x-session-id"


class SessionRouter(RequestRouter):  # type: ignore[misc]
    """Chooses the replica of a request by its session id (rendezvous hashing).

    A new or a lost replica changes the replica of few session ids. If the chosen replica is full, the next one of the
    session id takes the request. A request without a session id goes to the emptier one of two random replicas.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Rank the replicas for a request.

        Args:
            candidate_replicas: All running replicas.
            pending_request: The request.

        Returns:
            Groups of replicas, the preferred group first. Ray takes the emptiest replica of a group that is not full.
        """
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # without it, Ray retries at once while all are full
        session_id = None if pending_request is None else find_session_id(pending_request)
        if session_id is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        names = [replica.replica_id.unique_id for replica in candidate_replicas]
        return [[candidate_replicas[number]] for number in rank_by_session(session_id, names)]


def find_session_id(request: PendingRequest) -> bytes | None:
    """Return the session id of a call of `Replica.handle_request`, or None. Its first argument is an ASGI scope."""
    scope = request.args[0] if request.args else None
    headers = scope.get("headers", ()) if isinstance(scope, dict) else ()
    return next((value for name, value in headers if name == SESSION_HEADER and value), None)


def rank_by_session(session_id: bytes, names: list[str]) -> list[int]:
    """Rank replicas for a session id.

    Args:
        session_id: The session id.
        names: Names of the replicas.

    Returns:
        The numbers of the replicas, the preferred one first. The order of `names` does not matter.
    """

    def hash_replica(number: int) -> bytes:
        return hashlib.sha256(session_id + b"\0" + names[number].encode()).digest()

    return sorted(range(len(names)), key=hash_replica)
