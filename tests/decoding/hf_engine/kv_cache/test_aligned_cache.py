"""The aligned cache against one plain list of keys per row."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoding.hf_engine.kv_cache.aligned_cache import HEADROOM, MIN_ROW_CAPACITY, AlignedCache

LAYERS, HEADS, WIDTH = 2, 2, 3


@dataclass
class ExpectedCache:
    """Expected keys of each row and layer, [heads, length, width]. Values are their negatives."""

    rows: list[list[Tensor]] = field(default_factory=list)
    written: int = 0

    def draw_keys(self, length: int) -> list[Tensor]:
        """Draw keys whose numbers occur nowhere else."""
        size = HEADS * length * WIDTH
        layers = []
        for _ in range(LAYERS):
            layers.append(torch.arange(self.written, self.written + size).float().view(HEADS, length, WIDTH))
            self.written += size
        return layers

    def join(self, cache: AlignedCache, length: int) -> None:
        keys = self.draw_keys(length)
        cache.add_row([(key, -key) for key in keys])
        self.rows.append(keys)

    def remove_row(self, cache: AlignedCache, row: int) -> None:
        cache.remove_row(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def step(self, cache: AlignedCache) -> None:
        cache.reserve_column()
        new = [self.draw_keys(1) for _ in self.rows]
        mask = cache.build_mask(torch.float32, torch.device("cpu"))
        for layer in range(LAYERS):
            keys = torch.stack([row[layer] for row in new])
            seen, values = cache.layers[layer].update(keys, -keys)
            assert torch.equal(values, -seen)
            for number, row in enumerate(self.rows):
                row[layer] = torch.cat([row[layer], keys[number]], dim=1)
                self.check(seen[number], row[layer], None if mask is None else mask[number, 0, 0])
        cache.advance()

    @staticmethod
    def check(seen: Tensor, expected: Tensor, mask: Tensor | None) -> None:
        visible = seen if mask is None else seen[:, mask == 0]
        assert torch.equal(visible, expected)


cache_moves = st.one_of(
    st.tuples(st.just("join"), st.integers(1, 12)),
    st.tuples(st.just("leave"), st.integers(0, 7)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("release"), st.just(0)),
)


@given(st.lists(cache_moves, max_size=40), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_rows_see_their_own_keys_under_any_moves(moves: list[tuple[str, int]], headroom: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decoding.hf_engine.kv_cache.aligned_cache.HEADROOM", headroom)  # so that buffers move often
        patch.setattr("decoding.hf_engine.kv_cache.aligned_cache.MIN_ROW_CAPACITY", 1)
        cache, naive = AlignedCache(LAYERS), ExpectedCache()
        for move, number in moves:
            if move == "join":
                naive.join(cache, number)
            elif move == "release" and not naive.rows:
                cache.release_buffers()
            elif naive.rows and move == "leave":
                naive.remove_row(cache, number % len(naive.rows))
            elif naive.rows and move == "step":
                for _ in range(number):
                    naive.step(cache)
            assert cache.rows == len(naive.rows)


def test_buffers_move_when_full_and_keep_columns_in_use() -> None:
    cache, naive = AlignedCache(LAYERS), ExpectedCache()
    naive.join(cache, 4)
    for _ in range(HEADROOM + 3):
        naive.step(cache)
    naive.join(cache, 2)
    naive.remove_row(cache, 0)
    for _ in range(2 * HEADROOM):
        naive.step(cache)
    assert cache.layers[0].keys.shape[2] <= 3 * HEADROOM


def test_buffers_shrink_with_the_rows() -> None:
    cache, naive = AlignedCache(LAYERS), ExpectedCache()
    for _ in range(4 * MIN_ROW_CAPACITY):
        naive.join(cache, 4)
    while cache.rows > MIN_ROW_CAPACITY // 2:
        naive.remove_row(cache, 0)
        naive.step(cache)
    assert cache.layers[0].keys.shape[0] == MIN_ROW_CAPACITY
    while cache.rows:
        naive.remove_row(cache, 0)
    assert cache.layers[0].keys.shape[0] == MIN_ROW_CAPACITY
    cache.release_buffers()
    assert cache.layers[0].keys is None
    naive.join(cache, 3)
    naive.step(cache)


def test_longer_prompt_extends_the_buffers_to_the_left() -> None:
    cache, naive = AlignedCache(LAYERS), ExpectedCache()
    naive.join(cache, 3)
    naive.step(cache)
    naive.join(cache, 3 * HEADROOM)
    naive.step(cache)
    assert cache.starts == [3 * HEADROOM - 4, 0]


def test_equal_lengths_need_no_mask() -> None:
    cache, naive = AlignedCache(LAYERS), ExpectedCache()
    for length in (5, 5, 5):
        naive.join(cache, length)
    assert cache.build_mask(torch.float32, torch.device("cpu")) is None
    naive.join(cache, 4)
    assert cache.build_mask(torch.float32, torch.device("cpu")) is not None


@pytest.mark.parametrize("window", [1, 3, 6, 100])
def test_window_masks_older_keys(window: int) -> None:
    cache, naive = AlignedCache(LAYERS), ExpectedCache()
    for length in (7, 2):
        naive.join(cache, length)
    cache.reserve_column()
    mask = cache.build_mask(torch.float32, torch.device("cpu"), window)
    seen = [8, 3] if mask is None else (mask[:, 0, 0] == 0).sum(-1).tolist()
    assert seen == [min(window, 8), min(window, 3)]
    if mask is not None:
        assert all(row[-count:].eq(0).all() for row, count in zip(mask[:, 0, 0], seen, strict=True))


def test_removed_row_leaves_no_nan_for_the_next_row() -> None:
    """A masked key has weight 0, but 0 times nan is nan."""
    cache, naive = AlignedCache(LAYERS), ExpectedCache()
    for length in (6, 3):
        naive.join(cache, length)
    bad = [(torch.full((HEADS, 9, WIDTH), torch.nan),) * 2] * LAYERS
    cache.add_row(bad)
    cache.remove_row(2)
    naive.join(cache, 2)
    cache.add_row(bad)
    naive.rows.append([])
    naive.remove_row(cache, 0)
    cache.remove_row(0)
    naive.rows[0] = naive.rows.pop()
    cache.reserve_column()
    key = torch.zeros(cache.rows, HEADS, 1, WIDTH)
    for layer in cache.layers:
        assert all(states.isfinite().all() for states in layer.update(key, key))


def test_empty_cache_reuses_its_buffers() -> None:
    cache, naive = AlignedCache(LAYERS), ExpectedCache()
    naive.join(cache, 20)
    for _ in range(30):
        naive.step(cache)
    naive.remove_row(cache, 0)
    buffer = cache.layers[0].keys
    naive.join(cache, 40)
    assert cache.layers[0].keys is buffer
    assert cache.starts == [0]
    naive.step(cache)
