"""Registry of gangs and their engine requests, and counters of the scheduler. It holds no blocks and no budgets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from decoding.vllm_engine.member import Member

VllmRequest = Any  # vllm.v1.request.Request


@dataclass(slots=True)
class Gang:
    """The members of one request, the main one first. A gang is incomplete until all members have arrived."""

    id: str
    size: int
    is_single_step: bool
    members: list[VllmRequest] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return len(self.members) == self.size

    @property
    def request_ids(self) -> list[str]:
        return [request.request_id for request in self.members]


class GangRegistry:
    """The gangs in the engine, by the request ids of their members."""

    def __init__(self) -> None:
        self._by_gang_id: dict[str, Gang] = {}
        self._by_request_id: dict[str, Gang] = {}

    def __len__(self) -> int:
        return len(self._by_gang_id)

    def __iter__(self) -> Iterator[Gang]:
        return iter(self._by_gang_id.values())

    def add(self, request: VllmRequest, member: Member) -> Gang:
        """Add a member to its gang, and return the gang."""
        gang = self._by_gang_id.setdefault(member.gang, Gang(member.gang, member.size, member.is_single_step))
        gang.members.insert(0 if member.is_main else len(gang.members), request)
        self._by_request_id[request.request_id] = gang
        return gang

    def get_gang(self, request_id: str) -> Gang | None:
        """Return the gang of a request; None if it belongs to none."""
        return self._by_request_id.get(request_id)

    def expand(self, request_ids: Iterable[str]) -> set[str]:
        """Return these request ids and those of all other members of their gangs."""
        ids = set(request_ids)
        return ids.union(*(self._by_request_id[each].request_ids for each in ids if each in self._by_request_id))

    def remove(self, request_id: str) -> None:
        """Remove the gang of a request, with all members."""
        gang = self._by_request_id.get(request_id)
        if gang is not None:
            self._by_gang_id.pop(gang.id, None)
            for each in gang.request_ids:
                self._by_request_id.pop(each, None)


@dataclass(slots=True)
class GangCounters:
    """Counters since the start of the engine, for /metrics and for tests.

    `violations` stays 0. If it does not, the tokens were sampled again or the request has failed.
    """

    steps: int = 0  # steps with a gang in the engine
    tokens: int = 0  # tokens sampled by complete gangs, one per gang and step
    holds: int = 0  # times that a member waited before its last known token for the others
    alone: int = 0  # steps that ran a single-step gang only
    preemptions: int = 0  # preempted gangs
    others_preempted: int = 0  # requests without branches that the plan preempted
    stock_preemptions: int = 0  # preemptions by vLLM's own loop while gangs are in the engine; the plan prevents them
    violations: int = 0  # members that would have sampled a token without the others
    redone: int = 0  # of those, tokens dropped and sampled again
    failed: int = 0  # gangs that failed: a strategy raised, or the members could not be kept in step

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


COUNTER_HELP = {
    "steps": "Steps with a gang in the engine. A gang is a request and its branches.",
    "tokens": "Tokens that complete gangs sampled, one per gang and step.",
    "holds": "Times that a member of a gang waited before its last known token for the others.",
    "alone": "Steps that ran one single-step gang (a probe) and nothing else.",
    "preemptions": "Gangs preempted because the KV cache was full; they recompute their answers.",
    "others_preempted": (
        "Requests without branches preempted because the KV cache was full; they recompute their answers."
    ),
    "stock_preemptions": "Preemptions by vLLM's own scheduler while gangs are in the engine. It must stay 0.",
    "violations": "Members of gangs that would have sampled a token without the others. It must stay 0.",
    "redone": "Tokens that were dropped after a violation and sampled again.",
    "failed": "Gangs that failed, because a strategy raised an exception or their members left the lockstep.",
}
