"""A step of a small model runs in one thread, whatever the prompts run in."""

import pytest
import torch
from torch import nn

from decoding.hf_engine import threads

SMALL, LARGE = nn.Linear(64, 64), nn.Linear(1024, 512)


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def test_one_where_no_layer_is_large() -> None:
    assert threads.for_steps(nn.Sequential(SMALL, SMALL)) == 1
    assert threads.for_steps(nn.Sequential(SMALL, LARGE)) == 2


def test_what_the_user_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.for_steps(SMALL) == 2


def test_only_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with threads.limited(2):
        assert not told
    with threads.limited(1):
        assert told == [1]
    assert told == [1, 2]
