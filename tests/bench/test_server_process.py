"""The memory of a server and its child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from bench.harness.server_process import ServerProcess

PARENT = """
import os, subprocess, sys, time
held = bytearray(os.urandom(1)) * 200_000_000
copy = os.fork()
if not copy:
    time.sleep(60)
code = "import time; held = bytes([1]) * 100_000_000; print(flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code])
print(flush=True)
child.wait()
"""


def test_a_copy_of_the_server_is_not_counted_twice() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, process_group=0) as parent:
        assert parent.stdout is not None
        try:
            assert [parent.stdout.readline() for _ in range(2)] == [b"\n", b"\n"], "both have their memory"
            server = ServerProcess.__new__(ServerProcess)
            server.handle = parent
            assert 300 < server.megabytes < 380
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
