"""What the model would say if it ended after an earlier layer: those hidden states, through its own norm and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from decoding.strategy import Exits

Wanted = Mapping[int, Mapping[str, Exits]]  # row of a pass -> owner -> where it listens
Early = dict[int, dict[str, Tensor]]  # row -> owner -> [exits, vocab], float32


class ExitTap:
    """Listens at the layers that some row asks for, for the length of one pass."""

    def __init__(self, decoder: Any, head: Callable[[Tensor], Tensor]) -> None:
        self._layers: Sequence[Any] = decoder.layers
        self._norm = decoder.norm
        self._head = head

    @contextmanager
    def listened(self, wanted: Wanted, last: Mapping[int, int]) -> Iterator[Early]:
        """`last`: which of the pass's tokens is the newest of each row. The result is filled when the block ends."""
        early: Early = {}
        if not wanted:
            yield early
            return
        heard: dict[tuple[int, int], Tensor] = {}  # row, layers passed -> [width]
        own = [(row, owner, exits) for row, owners in wanted.items() for owner, exits in owners.items()]

        def listen(depth: int) -> Callable[..., None]:
            rows = {row for row, _, exits in own if depth in exits.layers}

            def hook(_: object, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
                hidden = inputs[0] if inputs else named["hidden_states"]
                heard.update({(row, depth): hidden[row, last[row]].clone() for row in rows})

            return hook

        with ExitStack() as hooks:
            for depth in {depth for _, _, exits in own for depth in exits.layers}:
                # What goes into layer number `depth` has passed as many layers.
                handle = self._layers[depth].register_forward_pre_hook(listen(depth), with_kwargs=True)
                hooks.callback(handle.remove)
            yield early
        hidden = [heard[row, depth].to(self._norm.weight.device) for row, _, exits in own for depth in exits.layers]
        normed = [exits.normed for _, _, exits in own for _ in exits.layers]
        said = torch.split(self._say(torch.stack(hidden), normed), [len(exits.layers) for _, _, exits in own])
        for (row, owner, _), logits in zip(own, said, strict=True):
            early.setdefault(row, {})[owner] = logits

    def _say(self, hidden: Tensor, normed: Sequence[bool]) -> Tensor:
        """[all exits, width] -> [all exits, vocab], in one product with the head."""
        through = torch.tensor(normed, device=hidden.device)[:, None]
        return self._head(torch.where(through, self._norm(hidden), hidden))
