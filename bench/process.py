"""A server in a process of its own, and what the system says of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx


class Server:
    """With the embedded model on a CPU. `flags` as on the command line."""

    def __init__(self, *flags: str) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - closed when the server is
        command = [sys.executable, "-u", "-m", "server", "--port", "0", "--device", "cpu", *flags]
        self.began = time.monotonic()
        self.handle = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self.handle.stdout is not None
        self.url = re.findall(r"http://[\d.:]+", self.handle.stdout.readline())[0]

    def __enter__(self) -> Server:
        while not self._is_ready():
            if self.handle.poll() is not None:
                raise RuntimeError(self.log)
            time.sleep(0.05)
        self.seconds_to_ready = time.monotonic() - self.began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.handle.kill()
        with self.handle:  # closes its pipe, and waits
            pass
        self._log.close()

    def send(self, number: signal.Signals) -> float:
        """When it was sent, of the monotonic clock."""
        self.handle.send_signal(number)
        return time.monotonic()

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
        """Resident."""
        pages = int(Path(f"/proc/{self.handle.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.handle.pid}/fd").iterdir()))

    async def metric(self, client: httpx.AsyncClient, name: str) -> float:
        """The sum over its labels."""
        lines = (await client.get(f"{self.url}/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"onlyseen_{name}[ {{]", line))
