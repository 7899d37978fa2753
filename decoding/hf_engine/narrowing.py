"""Takes tokens out of a prompt half-way through the model: from some layer on, nothing is computed for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]  # per layer: keys and values, [kv heads, length, head_dim]


class NarrowTap:
    """For decoders that give each layer the same positions and the same mask, and add nothing between layers."""

    def __init__(self, decoder: Any) -> None:
        self._layers = list(decoder.layers)

    @contextmanager
    def dropped(self, seen: Tensor) -> Iterator[None]:
        """Around a pass over one prompt. `seen`: [layers, length]; what a layer does not see, later ones do not."""
        with ExitStack() as hooks:
            for number, layer in enumerate(self._layers):
                if not bool(seen[number].all()):
                    before = seen[number - 1] if number else torch.ones_like(seen[0])
                    hook = layer.register_forward_pre_hook(narrowed(before, seen[number]), with_kwargs=True)
                    hooks.callback(hook.remove)
            yield


def narrowed(before: Tensor, seen: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A hook on a layer: its input without what is newly unseen, and everything else by position without all of it."""
    left = seen[before].nonzero().flatten()  # of what the layer before has passed on
    places = seen.nonzero().flatten()

    def hook(_: object, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = named["attention_mask"]
        fewer = {
            "attention_mask": None if mask is None else mask[:, :, places][..., places],
            "position_embeddings": tuple(part[:, places] for part in named["position_embeddings"]),
            "position_ids": named["position_ids"][..., places],
        }
        return (inputs[0][:, left], *inputs[1:]), {**named, **fewer}

    return hook


def spread(pairs: Pairs, seen: Tensor) -> Pairs:
    """Keys and values at the columns of their tokens again, with zeros, which steps will not see, at the others."""

    def spaced(kept: Tensor, places: Tensor) -> Tensor:
        whole = kept.new_zeros(kept.shape[0], len(places), kept.shape[2])
        whole[:, places] = kept
        return whole

    return [(spaced(keys, places), spaced(values, places)) for (keys, values), places in zip(pairs, seen, strict=True)]
