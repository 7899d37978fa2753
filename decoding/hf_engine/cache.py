"""Keys and values of all running rows in one buffer per layer, aligned at their newest token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from decoding.hf_engine import heap

HEADROOM = 64  # columns: steps between two moves of the buffers. A move copies what a step reads
FEW = 8  # rows for which there is always room, once there has been


class AlignedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, [row capacity, kv heads, columns, head_dim], and a view of what is in use."""

    is_sliding = False

    def __init__(self, owner: AlignedCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("rows join before they decode")

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows, first, now = self.owner.rows, self.owner.first, self.owner.now
        self.keys[:rows, :, now : now + 1] = key_states
        self.values[:rows, :, now : now + 1] = value_states
        return self.keys[:rows, :, first : now + 1], self.values[:rows, :, first : now + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.now - self.owner.first + query_length, 0

    def get_seq_length(self) -> int:
        return self.owner.now - self.owner.first

    def get_max_length(self) -> int:
        return -1


class AlignedCache(Cache):  # type: ignore[misc]
    """All rows write the same column at a step, so that a step costs one slice assignment per layer and no copy.

    A row that starts late begins at a later column: `starts[row]` is its first one. Keys already carry their rotary
    positions, so columns mean order only, and the distance between two columns of a row is that of its tokens.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[AlignedLayer(self) for _ in range(layers)])
        self.starts: list[int] = []
        self.now = 0  # the column that the next token is written to

    @property
    def rows(self) -> int:
        return len(self.starts)

    @property
    def first(self) -> int:
        return min(self.starts, default=self.now)

    def join(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add a row. `pairs`: for each layer its keys and values, [kv heads, length, head_dim]."""
        length = pairs[0][0].shape[1]
        if not self.starts:
            self.now = length if self._capacity()[1] > length else 0
        self._reserve(length, pairs)
        row, start = self.rows, self.now - length
        for layer, (keys, values) in zip(self.layers, pairs, strict=True):
            layer.keys[row, :, start : self.now] = keys
            layer.values[row, :, start : self.now] = values
        self._blank(row, start)
        self.starts.append(start)

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        last = self.rows - 1
        if row != last:
            start = self.starts[last]
            for layer in self.layers:
                layer.keys[row, :, start : self.now] = layer.keys[last, :, start : self.now]
                layer.values[row, :, start : self.now] = layer.values[last, :, start : self.now]
            self._blank(row, start)
            self.starts[row] = start
        self.starts.pop()
        capacity = self._capacity()[0]
        if capacity > FEW and 4 * self.rows <= capacity:
            self._move(capacity // 2, self.now - self.first)
            heap.trim()

    def release(self) -> None:
        """Give the buffers back. There must be no rows."""
        for layer in self.layers:
            layer.keys = layer.values = None
        heap.trim()

    def make_room(self) -> None:
        """Before a step: there is a column to write to."""
        if self.now >= self._capacity()[1]:
            self._move(self._capacity()[0], self.now - self.first)

    def advance(self) -> None:
        """After a step."""
        self.now += 1

    def around(self, row: int, length: int) -> tuple[int, int]:
        """How many columns of the coming step come before and after a row's first `length` ones."""
        before = self.starts[row] - self.first
        return before, self.now + 1 - self.first - before - length

    def mask(self, dtype: torch.dtype, device: torch.device, window: int | None = None) -> Tensor | None:
        """Additive [rows, 1, 1, columns] for the coming step; None where every row sees every column."""
        first, columns = self.first, self.now + 1 - self.first
        oldest = 0 if window is None else columns - window
        if oldest <= 0 and all(start == first for start in self.starts):
            return None
        from_column = torch.tensor([max(start - first, oldest) for start in self.starts], device=device)
        hidden = torch.arange(columns, device=device) < from_column[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
        return mask[:, None, None, :]

    def _blank(self, row: int, start: int) -> None:
        """What a row's predecessor left before the row's first column: a nan there would get through the mask."""
        for layer in self.layers:
            layer.keys[row, :, :start] = 0
            layer.values[row, :, :start] = 0

    def _capacity(self) -> tuple[int, int]:
        keys = self.layers[0].keys
        return (0, 0) if keys is None else (keys.shape[0], keys.shape[2])

    def _reserve(self, length: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        rows, columns = self._capacity()
        if columns == 0:
            for layer, (keys, values) in zip(self.layers, pairs, strict=True):
                layer.keys = keys.new_zeros(1, keys.shape[0], 0, keys.shape[2])
                layer.values = values.new_zeros(1, values.shape[0], 0, values.shape[2])
                layer.is_initialized = True
        if self.rows + 1 > rows or length > self.now or self.now >= columns:
            self._move(max(2 * rows, 2) if self.rows + 1 > rows else rows, max(length, self.now - self.first))

    def _move(self, rows: int, now: int) -> None:
        """Into new buffers in which the next token goes to column `now`."""
        used, first = self.rows, self.first
        width = self.now - first
        for layer in self.layers:
            layer.keys = moved(layer.keys, rows, used, first, width, now)
            layer.values = moved(layer.values, rows, used, first, width, now)
        self.starts = [start + now - self.now for start in self.starts]
        self.now = now


def moved(old: Tensor, rows: int, used: int, first: int, width: int, now: int) -> Tensor:
    # Zeros, not garbage: a masked column's value still meets a weight of 0, and 0 x nan is nan.
    new = old.new_zeros(rows, old.shape[1], now + HEADROOM, old.shape[3])
    new[:used, :, now - width : now] = old[:used, :, first : first + width]
    return new
