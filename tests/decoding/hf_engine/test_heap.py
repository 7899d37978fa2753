"""The heaps that the C library keeps for threads."""

import subprocess
import sys
from platform import libc_ver

import pytest

from decoding.hf_engine.heap import ARENAS

HEAPS = """
import ctypes, re, threading
from decoding.hf_engine import heap

RESTRAIN
library = heap.library()
library.malloc.restype = ctypes.c_void_p
everybody = threading.Barrier(8)
def allocate():
    everybody.wait()
    for _ in range(100): library.malloc(ctypes.c_size_t(10_000))
    everybody.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.fopen.restype = ctypes.c_void_p
report = ctypes.c_void_p(library.fopen(b"/dev/stdout", b"w"))
library.malloc_info(0, report)
library.fflush(report)
"""


def heaps(restrained: bool) -> int:
    program = HEAPS.replace("RESTRAIN", "heap.restrain()" if restrained else "")
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return told.stdout.count("<heap nr=")


@pytest.mark.skipif(libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_threads_share_few_heaps() -> None:
    assert heaps(restrained=True) <= ARENAS < heaps(restrained=False)
