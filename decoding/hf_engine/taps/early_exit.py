"""Logits of the model as if it ended after an earlier layer: those hidden states through its own norm and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from decoding.pipeline.composition import copy_numbers
from decoding.tensor_hooks import EarlyExits

ExitsByRow = Mapping[int, Mapping[str, EarlyExits]]  # row of a pass -> strategy -> its early exits
EarlyLogits = dict[int, dict[str, Tensor]]  # row -> strategy -> [exits, vocab], float32


class EarlyExitTap:
    """Captures hidden states before the layers that some row needs, for the length of one pass."""

    def __init__(self, decoder: Any, head: Callable[[Tensor], Tensor]) -> None:
        self._layers: Sequence[Any] = decoder.layers
        self._norm = decoder.norm
        self._head = head

    @contextmanager
    def capture(self, exits: ExitsByRow, newest: Mapping[int, int]) -> Iterator[EarlyLogits]:
        """Capture early logits during a pass.

        Args:
            exits: Early exits by row and strategy.
            newest: For each row, the position in the pass of its newest token.

        Yields:
            Early logits. They are filled when the block ends.
        """
        early_logits: EarlyLogits = {}
        if not exits:
            yield early_logits
            return
        captured: dict[tuple[int, int], Tensor] = {}  # row, layers passed -> [width]
        wanted = [(row, strategy, own) for row, by_strategy in exits.items() for strategy, own in by_strategy.items()]

        def build_tap(depth: int) -> Callable[..., None]:
            rows = {row for row, _, own in wanted if depth in own.layers}

            def capture_hidden(_: object, inputs: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
                hidden = inputs[0] if inputs else kwargs["hidden_states"]
                captured.update({(row, depth): hidden[row, newest[row]].clone() for row in rows})

            return capture_hidden

        with ExitStack() as stack:
            for depth in {depth for _, _, own in wanted for depth in own.layers}:
                # The input of layer number `depth` has passed `depth` layers.
                handle = self._layers[depth].register_forward_pre_hook(build_tap(depth), with_kwargs=True)
                stack.callback(handle.remove)
            yield early_logits
        hidden = [captured[row, depth].to(self._norm.weight.device) for row, _, own in wanted for depth in own.layers]
        is_normed = [own.normed for _, _, own in wanted for _ in own.layers]
        logits = torch.split(self._project(torch.stack(hidden), is_normed), [len(own.layers) for _, _, own in wanted])
        for (row, strategy, _), own_logits in zip(wanted, logits, strict=True):
            early_logits.setdefault(row, {})[strategy] = own_logits

    def _project(self, hidden: Tensor, is_normed: Sequence[bool]) -> Tensor:
        """Multiply with the head once for all exits: [exits, width] -> [exits, vocab]."""
        through_norm = copy_numbers(is_normed, torch.bool, hidden.device)[:, None]
        return self._head(torch.where(through_norm, self._norm(hidden), hidden))
