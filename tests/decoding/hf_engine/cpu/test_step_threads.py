"""Threads of a decoding step."""

import pytest
import torch
from torch import nn

from decoding.hf_engine.cpu import step_threads

SMALL, LARGE = nn.Linear(64, 64), nn.Linear(1024, 512)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def test_step_threads_is_one_without_large_layers(two_threads: None) -> None:
    assert step_threads.choose_step_threads(nn.Sequential(SMALL, SMALL)) == 1
    assert step_threads.choose_step_threads(nn.Sequential(SMALL, LARGE)) == 2


def test_step_threads_keeps_the_users_setting(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert step_threads.choose_step_threads(SMALL) == 2


def test_limit_threads_restores_the_number_after_the_block(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    with step_threads.limit_threads(2):
        assert not calls
    with step_threads.limit_threads(1):
        assert calls == [1]
    assert calls == [1, 2]
