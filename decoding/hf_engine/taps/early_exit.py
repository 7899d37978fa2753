"""Logits of the model as if it ended after an earlier layer: those hidden states through its own norm and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from decoding.pipeline.early_exits import EarlyLogits, ExitsByRow, compute_early_logits, list_exits


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
        wanted = list_exits(exits)

        def build_tap(depth: int) -> Callable[..., None]:
            rows = {row for row, layers in wanted if layers == depth}

            def capture_hidden(_: object, inputs: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
                hidden = inputs[0] if inputs else kwargs["hidden_states"]
                captured.update({(row, depth): hidden[row, newest[row]].clone() for row in rows})

            return capture_hidden

        with ExitStack() as stack:
            for depth in {depth for _, depth in wanted}:
                # The input of layer number `depth` has passed `depth` layers.
                handle = self._layers[depth].register_forward_pre_hook(build_tap(depth), with_kwargs=True)
                stack.callback(handle.remove)
            yield early_logits
        hidden = torch.stack([captured[each].to(self._norm.weight.device) for each in wanted])
        early_logits.update(compute_early_logits(exits, hidden, self._norm, self._head))
