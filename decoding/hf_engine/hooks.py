"""What stands between the model's scores and the choice: what cannot be said, then the strategies' `logits` hooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from decoding import onion
from decoding.ask import MAIN
from decoding.hf_engine.request import Request
from decoding.strategy import Strategy, Tensors

Rows = Mapping[str, int]  # prompt name -> row of the logits


Failed = dict[int, Exception]  # number of a request -> what its strategies raised


def sayable(requests: Sequence[Request], rows: Sequence[Rows], logits: Tensor) -> Tensor:
    """[rows, vocab] with -inf, in main rows, at tokens that a grammar forbids, or that would end an answer too early.

    Before the strategies, so that they weigh among what can be said: a cut that kept only what is forbidden would
    leave nothing.
    """
    bound = [
        (own[MAIN], request)
        for request, own in zip(requests, rows, strict=True)
        if request.constraint or request.chooser.is_too_short
    ]
    if not bound:
        return logits
    lawful = logits.clone()
    for row, request in bound:
        if request.constraint:
            lawful[row].masked_fill_(~request.constraint.allowed, -torch.inf)
        if request.chooser.is_too_short:
            lawful[row].index_fill_(-1, request.chooser.eos, -torch.inf)
    return lawful


def waking(requests: Sequence[Request], rows: Sequence[Rows], logits: Tensor) -> tuple[dict[int, list[str]], Failed]:
    """The sleeping branches that this step needs, by number of the request: what their strategies say to its scores."""
    wanted: dict[int, list[str]] = {}
    failed: Failed = {}
    for members in kinds(requests, [bool(request.dormant) for request in requests]):
        raw = logits[[rows[i][MAIN] for i in members]]
        try:
            for strategy in requests[members[0]].ask.stack:
                names = [name for name in requests[members[0]].dormant if owns(strategy, name)]
                needed = strategy.wakes(raw).tolist() if names else ()
                for number in compress(members, needed):
                    wanted.setdefault(number, []).extend(names)
        except Exception as error:
            failed |= dict.fromkeys(members, error)
    return {number: names for number, names in wanted.items() if number not in failed}, failed


def kinds(requests: Sequence[Request], wanted: Sequence[bool], rows: Sequence[Rows] | None = None) -> list[list[int]]:
    """Numbers of those that are wanted, in groups that share their hooks' calls: of one kind, with the same rows."""
    groups: dict[object, list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        if wanted[number]:
            own = frozenset(rows[number]) if rows and request.dormant else None
            groups[request.kind, own].append(number)
    return list(groups.values())


def owns(strategy: Strategy, branch: str) -> bool:
    return branch.startswith(f"{strategy.name}/")


class Mixer:
    """The `logits` hooks of a batch, called once a step for all requests of one kind."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Request, ...], Kind] = {}  # of the last step

    def mix(self, requests: Sequence[Request], rows: Sequence[Rows], logits: Tensor) -> tuple[Tensor, Failed]:
        """[rows, vocab] of all branches -> [requests, vocab] as their stacks leave them, inner strategies first.

        A strategy that raises fails the requests that use it, not the batch.
        """
        scores = logits[[own[MAIN] for own in rows]]
        failed: Failed = {number: request.failure for number, request in enumerate(requests) if request.failure}
        acting = [any("logits" in strategy.hooks() for strategy in request.ask.stack) for request in requests]
        known, self._kinds = self._kinds, {}
        for numbers in kinds(requests, acting, rows):
            members = tuple(requests[number] for number in numbers)
            try:
                kind = self._kinds[members] = known.get(members) or Kind.of(members, logits.device)
                here = numbers if len(numbers) < len(requests) else slice(None)  # to index copies, a slice does not
                scores[here] = kind.through([rows[number] for number in numbers], scores[here], logits)
            except Exception as error:
                failed |= dict.fromkeys(numbers, error)
        return scores, failed


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests that share their hooks' calls, and what stays the same for as long as they go on together."""

    requests: tuple[Request, ...]
    stack: tuple[Strategy, ...]  # one for all of them
    memories: Mapping[str, Tensors]  # owner -> name -> [requests, *shape]

    @classmethod
    def of(cls, requests: tuple[Request, ...], device: torch.device) -> Kind:
        stack = onion.joined([request.ask.stack for request in requests], device)
        return cls(requests, stack, {strategy.name: remembered(strategy, requests) for strategy in stack})

    def through(self, rows: Sequence[Rows], raw: Tensor, logits: Tensor) -> Tensor:
        """`raw`: [requests, vocab], those of `logits`, [rows, vocab], that are the main branches'."""
        position = torch.tensor([[request.spent.steps] for request in self.requests], device=logits.device)
        one, *_ = self.requests
        branches = {name: logits[[own[name] for own in rows]] for name in one.ask.branches if name in rows[0]}
        early = {owner: torch.stack([request.early[owner] for request in self.requests]) for owner in one.early}
        return onion.through(self.stack, raw, branches, self.memories, position, early)


def remembered(strategy: Strategy, requests: Sequence[Request]) -> dict[str, Tensor]:
    """What the strategy's digest left for each request, stacked: [requests, *shape] by name."""
    memories = [request.memories[strategy.name].tensors for request in requests if strategy.name in request.memories]
    if not memories:
        return {}
    return {name: torch.stack([memory[name] for memory in memories]) for name in memories[0]}
