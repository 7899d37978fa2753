"""The aligned cache against one plain list of keys per row."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoding.hf_engine.cache import FEW, HEADROOM, AlignedCache

LAYERS, HEADS, WIDTH = 2, 2, 3


@dataclass
class Naive:
    """What a cache should hold: for each row and layer its keys, [heads, length, width]. Values are their negatives."""

    rows: list[list[Tensor]] = field(default_factory=list)
    written: int = 0

    def fresh(self, length: int) -> list[Tensor]:
        """Numbers that nothing else has."""
        size = HEADS * length * WIDTH
        layers = []
        for _ in range(LAYERS):
            layers.append(torch.arange(self.written, self.written + size).float().view(HEADS, length, WIDTH))
            self.written += size
        return layers

    def join(self, cache: AlignedCache, length: int) -> None:
        keys = self.fresh(length)
        cache.join([(key, -key) for key in keys])
        self.rows.append(keys)

    def leave(self, cache: AlignedCache, row: int) -> None:
        cache.leave(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def step(self, cache: AlignedCache) -> None:
        cache.make_room()
        new = [self.fresh(1) for _ in self.rows]
        mask = cache.mask(torch.float32, torch.device("cpu"))
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


moves = st.one_of(
    st.tuples(st.just("join"), st.integers(1, 12)),
    st.tuples(st.just("leave"), st.integers(0, 7)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("release"), st.just(0)),
)


@given(st.lists(moves, max_size=40), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_every_row_sees_its_own_keys_whoever_joins_and_leaves(story: list[tuple[str, int]], headroom: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decoding.hf_engine.cache.HEADROOM", headroom)  # so that buffers move often
        patch.setattr("decoding.hf_engine.cache.FEW", 1)
        cache, naive = AlignedCache(LAYERS), Naive()
        for move, number in story:
            if move == "join":
                naive.join(cache, number)
            elif move == "release" and not naive.rows:
                cache.release()
            elif naive.rows and move == "leave":
                naive.leave(cache, number % len(naive.rows))
            elif naive.rows and move == "step":
                for _ in range(number):
                    naive.step(cache)
            assert cache.rows == len(naive.rows)


def test_buffers_move_when_they_are_full_and_shrink_to_what_is_in_use() -> None:
    cache, naive = AlignedCache(LAYERS), Naive()
    naive.join(cache, 4)
    for _ in range(HEADROOM + 3):
        naive.step(cache)
    naive.join(cache, 2)
    naive.leave(cache, 0)
    for _ in range(2 * HEADROOM):
        naive.step(cache)
    assert cache.layers[0].keys.shape[2] <= 3 * HEADROOM


def test_buffers_of_many_rows_are_given_back_when_few_are_left() -> None:
    cache, naive = AlignedCache(LAYERS), Naive()
    for _ in range(4 * FEW):
        naive.join(cache, 4)
    while cache.rows > FEW // 2:
        naive.leave(cache, 0)
        naive.step(cache)
    assert cache.layers[0].keys.shape[0] == FEW
    while cache.rows:
        naive.leave(cache, 0)
    assert cache.layers[0].keys.shape[0] == FEW
    cache.release()
    assert cache.layers[0].keys is None
    naive.join(cache, 3)
    naive.step(cache)


def test_a_prompt_longer_than_all_that_run_finds_room_before_them() -> None:
    cache, naive = AlignedCache(LAYERS), Naive()
    naive.join(cache, 3)
    naive.step(cache)
    naive.join(cache, 3 * HEADROOM)
    naive.step(cache)
    assert cache.starts == [3 * HEADROOM - 4, 0]


def test_rows_of_one_length_need_no_mask() -> None:
    cache, naive = AlignedCache(LAYERS), Naive()
    for length in (5, 5, 5):
        naive.join(cache, length)
    assert cache.mask(torch.float32, torch.device("cpu")) is None
    naive.join(cache, 4)
    assert cache.mask(torch.float32, torch.device("cpu")) is not None


@pytest.mark.parametrize("window", [1, 3, 6, 100])
def test_in_a_window_only_the_newest_keys_are_seen(window: int) -> None:
    cache, naive = AlignedCache(LAYERS), Naive()
    for length in (7, 2):
        naive.join(cache, length)
    cache.make_room()
    mask = cache.mask(torch.float32, torch.device("cpu"), window)
    seen = [8, 3] if mask is None else (mask[:, 0, 0] == 0).sum(-1).tolist()
    assert seen == [min(window, 8), min(window, 3)]
    if mask is not None:
        assert all(row[-count:].eq(0).all() for row, count in zip(mask[:, 0, 0], seen, strict=True))


def test_what_a_row_left_cannot_reach_the_next_one_through_the_mask() -> None:
    """A masked key weighs nothing, but nothing times nan is nan."""
    cache, naive = AlignedCache(LAYERS), Naive()
    for length in (6, 3):
        naive.join(cache, length)
    bad = [(torch.full((HEADS, 9, WIDTH), torch.nan),) * 2] * LAYERS
    cache.join(bad)
    cache.leave(2)
    naive.join(cache, 2)
    cache.join(bad)
    naive.rows.append([])
    naive.leave(cache, 0)
    cache.leave(0)
    naive.rows[0] = naive.rows.pop()
    cache.make_room()
    key = torch.zeros(cache.rows, HEADS, 1, WIDTH)
    for layer in cache.layers:
        assert all(states.isfinite().all() for states in layer.update(key, key))


def test_an_emptied_cache_starts_anew_without_moving() -> None:
    cache, naive = AlignedCache(LAYERS), Naive()
    naive.join(cache, 20)
    for _ in range(30):
        naive.step(cache)
    naive.leave(cache, 0)
    buffer = cache.layers[0].keys
    naive.join(cache, 40)
    assert cache.layers[0].keys is buffer
    assert cache.starts == [0]
    naive.step(cache)
