"""Slow reference of model internals: attention score by score, and models that are cut off after a layer."""

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
    """Compute attention of one prompt head by head, all queries against all keys, in float64."""
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
def edit_attention(decoder: Any, *changes: Change) -> Iterator[None]:
    """Apply each change to the decoder's attention scores, in turn."""
    own = decoder.config._attn_implementation
    decoder.config._attn_implementation = "naive"
    current.extend(changes)
    try:
        yield
    finally:
        current.clear()
        decoder.config._attn_implementation = own


@contextmanager
def cut_layers(decoder: Any, depth: int | None) -> Iterator[None]:
    """Cut a decoder off after `depth` layers; None leaves it whole."""
    layers = decoder.layers
    decoder.layers = layers[:depth]
    try:
        yield
    finally:
        decoder.layers = layers


def raise_image_scores(visual: Tensor, alpha: float | Tensor, first_layer: int, heads: Tensor | None = None) -> Change:
    """Raise scores of image tokens as PAI and PAINT do, in the last row of the prompt and the rows of the answer.

    Args:
        visual: [prompt] mask of the image tokens.
        alpha: Increase, or one for each image token.
        first_layer: First edited layer.
        heads: [layers, heads] factors of the increase.

    Returns:
        The change.
    """
    places = visual.nonzero().flatten()

    def change(layer: int, head: int, scores: Tensor) -> None:
        for row in scores[len(visual) - 1 :] if layer >= first_layer else ():
            row[places] += (1.0 if heads is None else heads[layer, head]) * alpha * row[places].abs()

    return change


def mask_keys(columns: dict[int, list[int]]) -> Change:
    """Mask keys: layer -> tokens that no query attends to there."""

    def change(layer: int, head: int, scores: Tensor) -> None:
        scores[:, columns.get(layer, [])] = torch.finfo(torch.float32).min

    return change


def most_divergent_layer(z: Tensor, early: dict[int, Tensor]) -> int:
    """Return the layer with the greatest Jensen-Shannon divergence from the last one."""

    def divergence(depth: int) -> float:
        p, q = z.double().softmax(-1), early[depth].double().softmax(-1)
        middle = (p + q) / 2
        return float(((p * (p / middle).log()).nansum() + (q * (q / middle).log()).nansum()) / 2)

    return max(early, key=divergence)


def deco_candidates(z: Tensor, top_p: float, top_k: int) -> list[int]:
    """Return the candidates of DeCo."""
    p = z.double().softmax(-1).tolist()
    held, found = 0.0, []
    for token in sorted(range(len(p)), key=lambda token: -p[token])[:top_k]:
        if held >= top_p:
            break
        found.append(token)
        held += p[token]
    return found
