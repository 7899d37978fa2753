"""Which engine requests belong together. Bookkeeping alone: it knows nothing of blocks, budgets or vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from decoding.vllm_engine.member import Member

Request = Any  # vLLM's


@dataclass(slots=True)
class Gang:
    """The members of one ask, the main one first. Incomplete until all have arrived."""

    id: str
    size: int
    whole: bool
    members: list[Request] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return len(self.members) == self.size

    @property
    def ids(self) -> list[str]:
        return [request.request_id for request in self.members]


class Gangs:
    """By the id of each member's request."""

    def __init__(self) -> None:
        self._by_id: dict[str, Gang] = {}  # of the gang
        self._of: dict[str, Gang] = {}  # of the request

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Gang]:
        return iter(self._by_id.values())

    def join(self, request: Request, member: Member) -> Gang:
        """The gang with its new member in it."""
        gang = self._by_id.setdefault(member.gang, Gang(member.gang, member.size, member.whole))
        gang.members.insert(0 if member.is_main else len(gang.members), request)
        self._of[request.request_id] = gang
        return gang

    def of(self, request_id: str) -> Gang | None:
        return self._of.get(request_id)

    def together(self, request_ids: Iterable[str]) -> set[str]:
        """These requests, and everyone in their gangs."""
        ids = set(request_ids)
        return ids.union(*(self._of[one].ids for one in ids if one in self._of))

    def forget(self, request_id: str) -> None:
        """The gang of this request, with all its members."""
        gang = self._of.get(request_id)
        if gang is not None:
            self._by_id.pop(gang.id, None)
            for one in gang.ids:
                self._of.pop(one, None)
