"""Observe and scale the outputs of single attention heads, just before each layer's output projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HeadObserver = Callable[[int, Tensor], Tensor]  # layer, [rows, tokens, heads, head_dim] -> the same, edited or not
LayerScales = Sequence[Tensor | None]  # per layer: [rows, 1, heads * head_dim]; None where nothing is scaled


class HeadTap:
    """A tap on each layer's output projection. It does nothing outside of `observe` and `scale`."""

    def __init__(self, projections: Sequence[Any], num_heads: int) -> None:
        self.num_layers = len(projections)
        self.num_heads = num_heads
        self._head_dims = [projection.in_features // num_heads for projection in projections]
        self._observer: HeadObserver | None = None
        self._scales: LayerScales | None = None
        for layer, projection in enumerate(projections):
            projection.register_forward_pre_hook(self._build_tap(layer))

    @contextmanager
    def observe(self, observer: HeadObserver) -> Iterator[None]:
        """Pass the head outputs of each layer through `observer` within the block."""
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    @contextmanager
    def scale(self, scales: LayerScales | None) -> Iterator[None]:
        """Multiply the head outputs by `scales`, from `expand_scales`, within the block."""
        self._scales = scales
        try:
            yield
        finally:
            self._scales = None

    def expand_scales(self, head_scales: Sequence[Tensor | None]) -> LayerScales | None:
        """Expand the head scales of a batch over the elements of each head.

        They are expanded once, so that a step costs one multiplication in the layers that are scaled. On a GPU these
        are all layers.

        Args:
            head_scales: For each row [layers, heads], or None for all 1.

        Returns:
            Scales for `scale`; None if no row has head scales.
        """
        given = [scales for scales in head_scales if scales is not None]
        if not given:
            return None
        ones = torch.ones_like(given[0])
        stacked = torch.stack([ones if scales is None else scales for scales in head_scales])
        is_neutral = [False] * self.num_layers
        if stacked.device.type == "cpu":  # a GPU would have to be waited for, and multiplies in no time
            is_neutral = (stacked == 1).all(-1).all(0).tolist()
        return [
            None if is_neutral[layer] else stacked[:, layer].repeat_interleave(head_dim, -1)[:, None]
            for layer, head_dim in enumerate(self._head_dims)
        ]

    def _build_tap(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def edit_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._scales is not None:
                scale = self._scales[layer]
                return None if scale is None else (inputs[0] * scale.to(inputs[0].device), *inputs[1:])
            if self._observer is not None:
                outputs: Tensor = inputs[0].unflatten(-1, (self.num_heads, -1))
                return (self._observer(layer, outputs).flatten(-2), *inputs[1:])
            return None

        return edit_inputs
