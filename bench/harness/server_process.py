"""A server in a process of its own, with its memory, file descriptors and log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx

STOP_TIMEOUT = 60.0  # seconds
ENGINE_FLAGS = {"hf": ("--device", "cpu"), "vllm": ("--engine", "vllm")}


class ServerProcess:
    """A server with the embedded model on a CPU. `flags` are command-line flags."""

    def __init__(self, *flags: str, engine: str = "hf") -> None:
        # Files, because vLLM logs to both, and a pipe that nobody reads would stop it.
        self._output, self._log = (tempfile.NamedTemporaryFile("w+", suffix=".log") for _ in range(2))  # noqa: SIM115
        command = [sys.executable, "-u", "-m", "server", "--port", "0", *ENGINE_FLAGS[engine], *flags]
        self.started_at = time.monotonic()
        self.handle = subprocess.Popen(command, stdout=self._output, stderr=self._log)
        self.url = self._wait_for_url()
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> ServerProcess:
        while not self._is_ready():
            self._wait()
        self.seconds_to_ready = time.monotonic() - self.started_at
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if list_children(self.handle.pid):  # an engine in processes of its own, which a killed server would leave
            self.handle.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.handle.wait(STOP_TIMEOUT)
        self.handle.kill()
        self.handle.wait()
        self._log.close()
        self._output.close()

    def send_signal(self, number: signal.Signals) -> float:
        """Send a signal and return the time on the monotonic clock."""
        self.handle.send_signal(number)
        return time.monotonic()

    def _wait_for_url(self) -> str:
        """Wait for the address that the server prints, and return it."""
        while not (urls := re.findall(r"http://[\d.:]+(?=\s)", Path(self._output.name).read_text())):
            self._wait()
        return str(urls[0])

    def _wait(self) -> None:
        """Wait a moment. Raises `RuntimeError` with the log if the server has ended."""
        if self.handle.poll() is not None:
            raise RuntimeError(self.log)
        time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def megabytes(self) -> float:
        """Return the resident memory in megabytes, that of child processes included.

        A copy of the server that has not yet become another program is left out: it shares the pages of the server,
        which would count twice.
        """
        pages, command = count_pages(self.handle.pid), read_command(self.handle.pid)
        pages += sum(count_pages(pid) for pid in list_children(self.handle.pid) if read_command(pid) != command)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.handle.pid}/fd").iterdir()))

    async def read_metric(self, client: httpx.AsyncClient, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = (await client.get(f"{self.url}/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"onlyseen_{name}[ {{]", line))


def count_pages(pid: int) -> int:
    """Return the resident pages of a process; 0 if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return 0


def read_command(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def list_children(pid: int) -> list[int]:
    """Return the descendants of a process."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = [int(child) for child in (task / "children").read_text().split()]
            found += [descendant for child in children for descendant in (child, *list_children(child))]
    return found
