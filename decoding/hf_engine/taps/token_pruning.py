"""Drop tokens of a prompt between layers: from some layer on, nothing is computed for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from decoding.hf_engine.kv_cache.aligned_cache import KeyValues


class TokenPruningTap:
    """For decoders that give each layer the same positions and mask, and add nothing between layers."""

    def __init__(self, decoder: Any) -> None:
        self._layers = list(decoder.layers)

    @contextmanager
    def prune(self, kept: Tensor) -> Iterator[None]:
        """Drop tokens during a pass over one prompt.

        Args:
            kept: [layers, length] true where a layer sees a token. A token that one layer drops stays dropped.
        """
        with ExitStack() as stack:
            for number, layer in enumerate(self._layers):
                if not bool(kept[number].all()):
                    before = kept[number - 1] if number else torch.ones_like(kept[0])
                    handle = layer.register_forward_pre_hook(build_pruning_tap(before, kept[number]), with_kwargs=True)
                    stack.callback(handle.remove)
            yield


def build_pruning_tap(before: Tensor, kept: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Build a tap that removes tokens from a layer's inputs.

    Args:
        before: [length] true for tokens that the previous layer passed on.
        kept: [length] true for tokens that this layer sees.

    Returns:
        The tap, a forward pre-hook of torch. It drops hidden states that the previous layer passed on, and from all
        other inputs the entries of all dropped tokens.
    """
    among_passed = kept[before].nonzero().flatten()
    positions = kept.nonzero().flatten()

    def drop_tokens(
        _: object, inputs: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = kwargs["attention_mask"]
        pruned = {
            "attention_mask": None if mask is None else mask[:, :, positions][..., positions],
            "position_embeddings": tuple(part[:, positions] for part in kwargs["position_embeddings"]),
            "position_ids": kwargs["position_ids"][..., positions],
        }
        return (inputs[0][:, among_passed], *inputs[1:]), {**kwargs, **pruned}

    return drop_tokens


def restore_columns(key_values: KeyValues, kept: Tensor) -> KeyValues:
    """Move keys and values back to the columns of their tokens.

    Args:
        key_values: Per layer, those of the kept tokens, [kv heads, kept tokens, head_dim].
        kept: [layers, length] true where a layer sees a token.

    Returns:
        Per layer [kv heads, length, head_dim], with zeros at dropped tokens. Steps hide these columns.
    """

    def restore(states: Tensor, is_kept: Tensor) -> Tensor:
        restored = states.new_zeros(states.shape[0], len(is_kept), states.shape[2])
        restored[:, is_kept] = states
        return restored

    return [
        (restore(keys, is_kept), restore(values, is_kept))
        for (keys, values), is_kept in zip(key_values, kept, strict=True)
    ]
