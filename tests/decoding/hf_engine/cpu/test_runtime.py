"""Threads of a decoding step, and the heaps that the C library keeps for threads."""

import subprocess
import sys
from platform import libc_ver

import pytest
import torch
from torch import nn

from decoding.hf_engine.cpu import runtime
from decoding.hf_engine.cpu.runtime import NUM_ARENAS

SMALL, LARGE = nn.Linear(64, 64), nn.Linear(1024, 512)
PROGRAM = """
import ctypes, re, threading
from decoding.hf_engine.cpu import runtime

LIMIT_ARENAS
library = runtime.load_c_library()
library.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(8)
def allocate():
    barrier.wait()
    for _ in range(100): library.malloc(ctypes.c_size_t(10_000))
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.fopen.restype = ctypes.c_void_p
report = ctypes.c_void_p(library.fopen(b"/dev/stdout", b"w"))
library.malloc_info(0, report)
library.fflush(report)
"""


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def test_step_threads_is_one_without_large_layers(two_threads: None) -> None:
    assert runtime.choose_step_threads(nn.Sequential(SMALL, SMALL)) == 1
    assert runtime.choose_step_threads(nn.Sequential(SMALL, LARGE)) == 2


def test_step_threads_keeps_the_users_setting(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert runtime.choose_step_threads(SMALL) == 2


def test_limit_threads_restores_the_number_after_the_block(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    with runtime.limit_threads(2):
        assert not calls
    with runtime.limit_threads(1):
        assert calls == [1]
    assert calls == [1, 2]


def count_heaps(is_limited: bool) -> int:
    program = PROGRAM.replace("LIMIT_ARENAS", "runtime.limit_arenas()" if is_limited else "")
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return completed.stdout.count("<heap nr=")


@pytest.mark.skipif(libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_limit_arenas_limits_the_heaps_of_threads() -> None:
    assert count_heaps(is_limited=True) <= NUM_ARENAS < count_heaps(is_limited=False)
