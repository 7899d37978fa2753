"""Early exits of a request: the layers that its strategies read, and the logits after these layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from decoding.errors import BadRequest
from decoding.pipeline.composition import attribute_errors, copy_numbers
from decoding.tensor_hooks import EarlyExits, TensorHooks

ExitsByRow = Mapping[int, Mapping[str, EarlyExits]]  # row of a pass -> strategy -> its early exits
EarlyLogits = dict[int, dict[str, Tensor]]  # row -> strategy -> [exits, vocab], float32


def find_early_exits(stack: Sequence[TensorHooks], num_layers: int, has_tied_embeddings: bool) -> dict[str, EarlyExits]:
    """Collect the early exits of a stack.

    Args:
        stack: Strategies, outermost first.
        num_layers: Layers of the model.
        has_tied_embeddings: Whether the model's head is its input embedding.

    Returns:
        Strategy name -> its early exits. Strategies that select no layer are absent.

    Raises:
        BadRequest: A strategy selects the output of the last layer, or of a layer that the model does not have.
    """
    exits: dict[str, EarlyExits] = {}
    last = num_layers - 1
    for strategy in stack:
        with attribute_errors(strategy):
            own = strategy.early_exit_layers(num_layers, has_tied_embeddings)
        if max(own.layers, default=0) > last:
            raise BadRequest(
                f"'{strategy.name}' reads layer {max(own.layers)}; this model allows at most {last}.",
                param=f"decoding.{strategy.name}",
            )
        if own.layers:
            exits[strategy.name] = own
    return exits


def list_exits(exits: ExitsByRow) -> list[tuple[int, int]]:
    """List (row, layers passed) of all exits: by row, then by strategy, then in the order of `EarlyExits.layers`."""
    return [(row, depth) for row, own in exits.items() for each in own.values() for depth in each.layers]


def compute_early_logits(
    exits: ExitsByRow, hidden: Tensor, norm: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]
) -> EarlyLogits:
    """Multiply with the model's head once for all exits.

    Args:
        exits: Early exits by row and strategy, at least one.
        hidden: [exits, width] hidden states, in the order of `list_exits`.
        norm: The model's final norm.
        head: The model's head, from [exits, width] to [exits, vocab].

    Returns:
        Row -> strategy -> [exits of the strategy, vocab], in the order of `EarlyExits.layers`.
    """
    wanted = [(row, strategy, own) for row, by_strategy in exits.items() for strategy, own in by_strategy.items()]
    is_normed = copy_numbers([own.normed for _, _, own in wanted for _ in own.layers], torch.bool, hidden.device)
    logits = head(torch.where(is_normed[:, None], norm(hidden), hidden))
    early_logits: EarlyLogits = {}
    for (row, strategy, _), own_logits in zip(
        wanted, torch.split(logits, [len(own.layers) for _, _, own in wanted]), strict=True
    ):
        early_logits.setdefault(row, {})[strategy] = own_logits
    return early_logits
