"""The strategies of a stack, each acting on what the one inside it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from decoding.strategy import PER_ROW, Step, Strategy, Tensors


def through(
    stack: Sequence[Strategy],
    raw: Tensor,
    branches: Mapping[str, Tensor],
    memories: Mapping[str, Tensors],
    position: Tensor,
    early: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """[..., vocab] -> [..., vocab] by the `logits` hooks, inner strategies first. A strategy sees its own branches.

    `stack` is outermost first, `memories` by owner, `position` [..., 1] tokens generated so far, `early` by owner what
    the layers say that it listens at, [..., exits, vocab]. Raises TypeError where one does not keep shape or dtype.
    """
    scores = raw
    for strategy in reversed(stack):
        if "logits" in strategy.hooks():
            own = {name: logits for name, logits in branches.items() if name.startswith(f"{strategy.name}/")}
            heard = (early or {}).get(strategy.name)
            left = strategy.logits(Step(scores, raw, own, memories.get(strategy.name, {}), position, heard))
            if left.shape != scores.shape or left.dtype != scores.dtype:
                made, of = (f"{one.dtype} {list(one.shape)}" for one in (left, scores))
                raise TypeError(f"`{strategy.name}.logits` made {made} of {of}: it must keep shape and dtype")
            scores = left
    return scores


def joined(stacks: Sequence[Sequence[Strategy]], device: torch.device) -> tuple[Strategy, ...]:
    """Stacks of one kind, a row each, as one for all rows."""
    return tuple(side_by_side(rows, device) for rows in zip(*stacks, strict=True))


def side_by_side(rows: Sequence[Strategy], device: torch.device) -> Strategy:
    columns: dict[str, Tensor] = {}
    for name in rows[0].marked(PER_ROW):
        numbers = [getattr(strategy, name) for strategy in rows]
        if len(set(numbers)) > 1:
            columns[name] = torch.tensor(numbers, dtype=torch.float64, device=device)[:, None]
    return rows[0].model_copy(update=columns) if columns else rows[0]


def factors(stack: Sequence[Strategy], memories: Mapping[str, Tensors], shape: tuple[int, int]) -> Tensor | None:
    """[layers, heads] = `shape`, the product of what the strategies put on the heads. None when none puts any there.

    Raises TypeError where one has another shape: one that broadcasts would scale other heads than it names.
    """
    given: list[Tensor] = []
    for strategy in stack:
        wanted = strategy.heads(memories.get(strategy.name, {}))
        if wanted is None:
            continue
        if wanted.shape != shape:
            raise TypeError(f"`{strategy.name}.heads` made {list(wanted.shape)}: it must make {list(shape)}")
        given.append(wanted)
    return reduce(torch.mul, given) if given else None
