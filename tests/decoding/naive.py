"""The inside of a model the slow way: attention score by score, and a model that ends early by being cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

Change = Callable[[int, int, Tensor], None]  # layer, head, [tokens, tokens] scores, which it edits in place

current: list[Change] = []


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """One head after the other, all queries against all keys, in float64; of one prompt alone."""
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    outputs = []
    for head in range(heads):
        one, other, seen = (
            tensor.double() for tensor in (query[0, head], key[0, head // shared], value[0, head // shared])
        )
        scores = one @ other.T * scaling
        for change in current:
            change(int(module.layer_idx), head, scores)  # type: ignore[arg-type]
        if mask is not None:
            scores = scores + mask[0, 0]
        outputs.append((scores.softmax(-1) @ seen).to(query.dtype))
    return torch.stack(outputs, dim=1)[None], None


AttentionInterface.register("naive", attention)
AttentionMaskInterface.register("naive", eager_mask)


@contextmanager
def changed(decoder: Any, *changes: Change) -> Iterator[None]:
    """The decoder's attention, edited by each change in turn."""
    own = decoder.config._attn_implementation
    decoder.config._attn_implementation = "naive"
    current.extend(changes)
    try:
        yield
    finally:
        current.clear()
        decoder.config._attn_implementation = own


@contextmanager
def cut(decoder: Any, depth: int | None) -> Iterator[None]:
    """A decoder that ends after `depth` layers; None leaves it whole."""
    layers = decoder.layers
    decoder.layers = layers[:depth]
    try:
        yield
    finally:
        decoder.layers = layers


def louder(visual: Tensor, alpha: float | Tensor, first_layer: int, heads: Tensor | None = None) -> Change:
    """PAI's, and PAINT's with an `alpha` for each picture token, and perhaps a factor on it for each layer and head.

    `visual`: [prompt], true at the tokens of pictures. Rows: the last of the prompt, and the answer's.
    """
    places = visual.nonzero().flatten()

    def change(layer: int, head: int, scores: Tensor) -> None:
        for row in scores[len(visual) - 1 :] if layer >= first_layer else ():
            row[places] += (1.0 if heads is None else heads[layer, head]) * alpha * row[places].abs()

    return change


def hidden(columns: dict[int, list[int]]) -> Change:
    """Layer -> the tokens that nothing sees there."""

    def change(layer: int, head: int, scores: Tensor) -> None:
        scores[:, columns.get(layer, [])] = torch.finfo(torch.float32).min

    return change


def most_apart(z: Tensor, early: dict[int, Tensor]) -> int:
    """The layer whose distribution has the greatest Jensen-Shannon divergence from the last one's."""

    def apart(depth: int) -> float:
        p, q = z.double().softmax(-1), early[depth].double().softmax(-1)
        middle = (p + q) / 2
        return float(((p * (p / middle).log()).nansum() + (q * (q / middle).log()).nansum()) / 2)

    return max(early, key=apart)


def candidates(z: Tensor, top_p: float, top_k: int) -> list[int]:
    """DeCo's."""
    p = z.double().softmax(-1).tolist()
    held, found = 0.0, []
    for token in sorted(range(len(p)), key=lambda token: -p[token])[:top_k]:
        if held >= top_p:
            break
        found.append(token)
        held += p[token]
    return found
