"""The strategies of a stack, each acting on what the one inside it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from decoding.strategy import Step, Strategy, Tensors


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
    the layers say that it listens at, [..., exits, vocab].
    """
    scores = raw
    for strategy in reversed(stack):
        if "logits" in strategy.hooks():
            own = {name: logits for name, logits in branches.items() if name.startswith(f"{strategy.name}/")}
            heard = (early or {}).get(strategy.name)
            scores = strategy.logits(Step(scores, raw, own, memories.get(strategy.name, {}), position, heard))
    return scores


def factors(stack: Sequence[Strategy], memories: Mapping[str, Tensors]) -> Tensor | None:
    """[layers, heads], the product of what the strategies put on the heads. None when none puts anything there."""
    wanted = [strategy.heads(memories.get(strategy.name, {})) for strategy in stack]
    given = [one for one in wanted if one is not None]
    return reduce(torch.mul, given) if given else None
