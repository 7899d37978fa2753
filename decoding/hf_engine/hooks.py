"""What stands between the model's scores and the choice: the grammars, then the strategies' `logits` hooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decoding import onion
from decoding.hf_engine.request import MAIN, Request
from decoding.strategy import Strategy

Rows = Mapping[str, int]  # prompt name -> row of the logits


Failed = dict[int, Exception]  # number of a request -> what its strategies raised


def within_grammars(requests: Sequence[Request], rows: Sequence[Rows], logits: Tensor) -> Tensor:
    """[rows, vocab] with -inf, in main rows, where the request's grammar allows no token.

    Before the strategies, so that they weigh among what can be said: a cut that kept only what the grammar forbids
    would leave nothing.
    """
    bound = [(own[MAIN], request.constraint) for request, own in zip(requests, rows, strict=True) if request.constraint]
    if not bound:
        return logits
    lawful = logits.clone()
    for row, constraint in bound:
        lawful[row].masked_fill_(~constraint.allowed, -torch.inf)
    return lawful


def mixed(requests: Sequence[Request], rows: Sequence[Rows], logits: Tensor) -> tuple[Tensor, Failed]:
    """[rows, vocab] of all branches -> [requests, vocab] as their stacks leave them, inner strategies first.

    A strategy that raises fails the requests that use it, not the batch.
    """
    scores = logits[[own[MAIN] for own in rows]]
    failed: Failed = {}
    groups: dict[object, list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        if any("logits" in strategy.hooks() for strategy in request.ask.stack):
            groups[request.kind].append(number)
    for members in groups.values():
        try:
            scores[members] = through([requests[i] for i in members], [rows[i] for i in members], logits)
        except Exception as error:
            failed |= dict.fromkeys(members, error)
    return scores, failed


def through(requests: Sequence[Request], rows: Sequence[Rows], logits: Tensor) -> Tensor:
    """The same for requests of one kind."""
    raw = logits[[own[MAIN] for own in rows]]
    position = torch.tensor([[request.spent.steps] for request in requests], device=logits.device)
    stack = requests[0].ask.stack
    branches = {name: logits[[own[name] for own in rows]] for name in requests[0].ask.branches}
    memories = {strategy.name: remembered(strategy, requests) for strategy in stack}
    return onion.through(stack, raw, branches, memories, position)


def remembered(strategy: Strategy, requests: Sequence[Request]) -> dict[str, Tensor]:
    """What the strategy's digest left for each request, stacked: [requests, *shape] by name."""
    memories = [request.memories[strategy.name].tensors for request in requests if strategy.name in request.memories]
    if not memories:
        return {}
    return {name: torch.stack([memory[name] for memory in memories]) for name in memories[0]}
