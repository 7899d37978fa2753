"""Reads and scales the outputs of single attention heads, just before each layer's output projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Observer = Callable[[int, Tensor], Tensor]  # layer, [rows, tokens, heads, head_dim] -> the same, edited or not
Scales = Sequence[Tensor | None]  # per layer: [rows, 1, heads * head_dim], None where nothing is scaled


class HeadTap:
    """One pre-hook per layer, free while nothing is asked of it."""

    def __init__(self, projections: Sequence[Any], heads: int) -> None:
        self.layers = len(projections)
        self.heads = heads
        self._widths = [projection.in_features // heads for projection in projections]
        self._observer: Observer | None = None
        self._scales: Scales | None = None
        for layer, projection in enumerate(projections):
            projection.register_forward_pre_hook(self._hook(layer))

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    @contextmanager
    def scaled_by(self, scales: Scales | None) -> Iterator[None]:
        self._scales = scales
        try:
            yield
        finally:
            self._scales = None

    def scales(self, factors: Sequence[Tensor | None]) -> Scales | None:
        """Each row's [layers, heads] factors, or None for all 1. None when nothing is scaled at all.

        Spread over the heads' elements once, so that a step costs one multiplication in the layers that need it.
        """
        given = [factor for factor in factors if factor is not None]
        if not given:
            return None
        neutral = torch.ones_like(given[0])
        stacked = torch.stack([neutral if factor is None else factor for factor in factors])
        idle = (stacked == 1).all(-1).all(0).tolist()
        return [
            None if idle[layer] else stacked[:, layer].repeat_interleave(width, -1)[:, None]
            for layer, width in enumerate(self._widths)
        ]

    def _hook(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def edit(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._scales is not None:
                scale = self._scales[layer]
                return None if scale is None else (inputs[0] * scale.to(inputs[0].device), *inputs[1:])
            if self._observer is not None:
                outputs: Tensor = inputs[0].unflatten(-1, (self.heads, -1))
                return (self._observer(layer, outputs).flatten(-2), *inputs[1:])
            return None

        return edit
