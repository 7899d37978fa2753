"""Heaps that the C library keeps for threads."""

import subprocess
import sys
from platform import libc_ver

import pytest

from decoding.malloc import NUM_ARENAS

PROGRAM = """
import ctypes, re, threading
from decoding import malloc

LIMIT_ARENAS
library = malloc.load_c_library()
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


def count_heaps(is_limited: bool) -> int:
    program = PROGRAM.replace("LIMIT_ARENAS", "malloc.limit_arenas()" if is_limited else "")
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return completed.stdout.count("<heap nr=")


@pytest.mark.skipif(libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_limit_arenas_limits_the_heaps_of_threads() -> None:
    assert count_heaps(is_limited=True) <= NUM_ARENAS < count_heaps(is_limited=False)
