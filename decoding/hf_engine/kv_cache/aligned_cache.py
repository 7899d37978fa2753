"""Keys and values of all running rows in one buffer per layer, aligned at their newest token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from decoding.malloc import trim_heap
from decoding.pipeline.composition import copy_numbers

HEADROOM = 64  # free columns after a move, so steps between two moves. A move copies as much as a step reads
MIN_ROW_CAPACITY = 8  # buffers do not shrink below this number of rows
KeyValues = list[tuple[Tensor, Tensor]]  # per layer: keys and values, [kv heads, length, head_dim]


@dataclass(frozen=True, slots=True)
class KVState:
    """Keys and values of one row.

    Attributes:
        key_values: Per layer.
        next_position: Position of the token that comes next.
    """

    key_values: KeyValues
    next_position: int

    def clone_key_values(self) -> KeyValues:
        """Copy the keys and values. A view would keep the whole pass in memory that they come from."""
        return [(keys.clone(), values.clone()) for keys, values in self.key_values]

    @property
    def length(self) -> int:
        """Tokens."""
        return self.key_values[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.key_values)

    def truncate(self, length: int) -> KVState:
        """Return a view of the first `length` tokens. The tokens after them must be text, with a position each."""
        key_values: KeyValues = [(keys[:, :length], values[:, :length]) for keys, values in self.key_values]
        return KVState(key_values, self.next_position - (self.length - length))


class AlignedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, [row capacity, kv heads, columns, head_dim]."""

    is_sliding = False

    def __init__(self, cache: AlignedCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("rows are added before they decode")

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token per row, [rows, kv heads, 1, head_dim], and return views of all keys and values in use."""
        rows, first, next_column = self.cache.rows, self.cache.first_column, self.cache.next_column
        self.keys[:rows, :, next_column : next_column + 1] = key_states
        self.values[:rows, :, next_column : next_column + 1] = value_states
        return self.keys[:rows, :, first : next_column + 1], self.values[:rows, :, first : next_column + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.width

    def get_max_length(self) -> int:
        return -1


class AlignedCache(Cache):  # type: ignore[misc]
    """KV cache in which all rows write the same column at a step. A step costs one slice assignment per layer.

    A row that starts late begins at a later column: `starts[row]` is its first one. Keys already carry their rotary
    positions. So columns mean order only, and the distance between two columns of a row is that of its tokens.

    A slot is one column of one row. `count_fitting_rows` lets a scheduler keep to `max_slots`. The cache itself
    always takes a row, so that a request that needs more slots than that can run alone.
    """

    def __init__(self, num_layers: int, max_slots: int = sys.maxsize) -> None:
        super().__init__(layers=[AlignedLayer(self) for _ in range(num_layers)])
        self.max_slots = max_slots
        self.starts: list[int] = []
        self.next_column = 0  # the column that the next token is written to

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts)

    @property
    def first_column(self) -> int:
        """First column of the longest row."""
        return min(self.starts, default=self.next_column)

    @property
    def width(self) -> int:
        """Columns of the longest row."""
        return self.next_column - self.first_column

    @property
    def has_free_column(self) -> bool:
        """Whether the next step needs no larger buffers."""
        return self.next_column < self._get_capacity()[1]

    def count_fitting_rows(self, width: int) -> int:
        """Count the rows of `width` columns, and the `HEADROOM` after them, that stay within the limit."""
        return self.max_slots // (width + HEADROOM)

    def add_row(self, key_values: KeyValues) -> None:
        """Add a row with the keys and values of its prompt."""
        length = key_values[0][0].shape[1]
        if not self.starts:
            self.next_column = length if self._get_capacity()[1] > length else 0
        self._reserve(length, key_values)
        row, start = self.rows, self.next_column - length
        for layer, (keys, values) in zip(self.layers, key_values, strict=True):
            layer.keys[row, :, start : self.next_column] = keys
            layer.values[row, :, start : self.next_column] = values
        self._clear_before(row, start)
        self.starts.append(start)

    def remove_row(self, row: int) -> None:
        """Remove a row. The last row takes its number."""
        last = self.rows - 1
        if row != last:
            start = self.starts[last]
            for layer in self.layers:
                layer.keys[row, :, start : self.next_column] = layer.keys[last, :, start : self.next_column]
                layer.values[row, :, start : self.next_column] = layer.values[last, :, start : self.next_column]
            self._clear_before(row, start)
            self.starts[row] = start
        self.starts.pop()
        capacity = self._get_capacity()[0]
        if capacity > MIN_ROW_CAPACITY and 4 * self.rows <= capacity:
            self._move(capacity // 2, self.width)
            trim_heap()

    def release_buffers(self) -> None:
        """Free the buffers. The cache must have no rows."""
        for layer in self.layers:
            layer.keys = layer.values = None
        trim_heap()

    def reserve_column(self) -> None:
        """Ensure that there is a column for the next token. To be called before a step."""
        if self.next_column >= self._get_capacity()[1]:
            self._move(self._get_capacity()[0], self.width)

    def advance(self) -> None:
        """Move to the next column. To be called after a step."""
        self.next_column += 1

    def count_columns_around(self, row: int, length: int) -> tuple[int, int]:
        """Return how many columns of the coming step lie before and after the first `length` columns of a row."""
        before = self.starts[row] - self.first_column
        return before, self.next_column + 1 - self.first_column - before - length

    def build_mask(self, dtype: torch.dtype, device: torch.device, window: int | None = None) -> Tensor | None:
        """Build the attention mask of the coming step.

        Args:
            dtype: Type of the mask.
            device: Device of the mask.
            window: Number of newest columns that a row sees; None for all.

        Returns:
            Additive [rows, 1, 1, columns]; None if every row sees every column.
        """
        first, columns = self.first_column, self.next_column + 1 - self.first_column
        oldest = 0 if window is None else columns - window
        if oldest <= 0 and all(start == first for start in self.starts):
            return None
        first_visible = copy_numbers([max(start - first, oldest) for start in self.starts], torch.long, device)
        hidden = torch.arange(columns, device=device) < first_visible[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
        return mask[:, None, None, :]

    def _clear_before(self, row: int, start: int) -> None:
        """Clear what an earlier row left before this row's first column. The mask would not stop a nan there."""
        for layer in self.layers:
            layer.keys[row, :, :start] = 0
            layer.values[row, :, :start] = 0

    def _get_capacity(self) -> tuple[int, int]:
        """Return rows and columns of the buffers."""
        keys = self.layers[0].keys
        return (0, 0) if keys is None else (keys.shape[0], keys.shape[2])

    def _reserve(self, length: int, key_values: Sequence[tuple[Tensor, Tensor]]) -> None:
        rows, columns = self._get_capacity()
        if columns == 0:
            for layer, (keys, values) in zip(self.layers, key_values, strict=True):
                layer.keys = keys.new_zeros(1, keys.shape[0], 0, keys.shape[2])
                layer.values = values.new_zeros(1, values.shape[0], 0, values.shape[2])
                layer.is_initialized = True
        if self.rows + 1 > rows or length > self.next_column or self.next_column >= columns:
            row_capacity = max(2 * rows, 2) if self.rows + 1 > rows else rows
            self._move(row_capacity, max(length, self.width), self.rows + 1)

    def _move(self, row_capacity: int, next_column: int, min_rows: int = 0) -> None:
        """Copy to new buffers, in which the next token goes to `next_column`.

        Args:
            row_capacity: Rows of the new buffers. There are fewer if the buffers would exceed the limit.
            next_column: Column of the next token.
            min_rows: Rows that the new buffers must have, besides those in use.
        """
        rows, first, width = self.rows, self.first_column, self.width
        row_capacity = max(rows, min_rows, min(row_capacity, self.count_fitting_rows(next_column)))
        for layer in self.layers:
            layer.keys = copy_buffer(layer.keys, row_capacity, rows, first, width, next_column)
            layer.values = copy_buffer(layer.values, row_capacity, rows, first, width, next_column)
        self.starts = [start + next_column - self.next_column for start in self.starts]
        self.next_column = next_column


def copy_buffer(old: Tensor, row_capacity: int, rows: int, first: int, width: int, next_column: int) -> Tensor:
    """Copy the columns in use to the columns of a new buffer before `next_column`.

    Args:
        old: Keys or values of a layer, [rows, heads, columns, head_dim].
        row_capacity: Rows of the new buffer.
        rows: Rows in use.
        first: First column in use.
        width: Number of columns in use.
        next_column: Column of the new buffer after the copied ones.

    Returns:
        The new buffer, [row_capacity, heads, next_column + HEADROOM, head_dim].
    """
    # Zeros, not garbage: a masked column's value still meets a weight of 0, and 0 x nan is nan.
    new = old.new_zeros(row_capacity, old.shape[1], next_column + HEADROOM, old.shape[3])
    new[:rows, :, next_column - width : next_column] = old[:rows, :, first : first + width]
    return new
