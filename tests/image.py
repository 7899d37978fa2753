"""An image of docker/ made in a clean folder: the commands of its Dockerfile, with the packages that are here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.server.test_end_to_end import wait_until_ready

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
APART = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""Nothing is fetched: what pip is told to install is found to be here, or pip fails. 0 stands for no isolation."""


@dataclass(frozen=True)
class Image:
    """What its Dockerfile says, and the folder that stands for the file system's root."""

    text: str
    folder: Path

    def environment(self) -> dict[str, str]:
        site = next(path for path in sys.path if path.endswith("site-packages"))
        told = {"PATH": "/usr/bin:/bin", "PYTHONPATH": site, "HOME": str(self.folder)}
        for line in self._all("ENV"):
            told |= dict(setting.split("=", 1) for setting in line.split())
        return told | {"PATH": f"{self.folder}/venv/bin:/usr/bin:/bin"}

    def install(self) -> None:
        """Copies what it copies and runs what concerns Python.

        Raises:
            CalledProcessError: a command has failed.
        """
        app = self.folder / "app"
        for line in self._all("COPY"):
            *sources, target = line.split()
            for source in sources:
                goal = app / target / (source if target.endswith("/") else "")
                goal.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, goal)
        venv.create(self.folder / "venv", with_pip=True)
        for line in self._all("RUN"):
            if "pip install" in line:
                line = re.sub(r"^.* -m venv /venv && ", "", line).replace("/tmp/", f"{self.folder}/")
                subprocess.run(["sh", "-ec", line], cwd=app, env=self.environment() | APART, check=True)

    def start(self, *options: str, **settings: str) -> subprocess.Popen[str]:
        command, environment = json.loads(self._all("ENTRYPOINT")[0]), self.environment() | settings
        binary = self.folder / "venv" / "bin" / command[0]
        cwd = self.folder / "app"
        return subprocess.Popen(
            [binary, *command[1:], *options], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
        )

    def check(self, port: str) -> None:
        """Raises CalledProcessError if its health check fails."""
        (command,) = re.findall(r"CMD (\[.*\])", self._all("HEALTHCHECK")[0])
        parts = [part.replace("8000", port) for part in json.loads(command)]
        subprocess.run(parts, env=self.environment(), check=True)

    def _all(self, instruction: str) -> list[str]:
        return re.findall(rf"^{instruction} (.+)$", self.text.replace("\\\n", ""), re.MULTILINE)


def image(name: str, folder: Path, instead: Mapping[str, str] | None = None) -> Image:
    """Installed. Of the packages that a Dockerfile names, some have another build here."""
    text = (DOCKER / f"{name}.Dockerfile").read_text()
    for there, here in (instead or {}).items():
        assert there in text
        text = text.replace(there, here)
    made = Image(text, folder)
    made.install()
    return made


def serves(made: Image, **settings: str) -> None:
    """Starts its server, which says where it listens, becomes ready, is healthy and stops in peace."""
    with made.start(ONLYSEEN_PORT="0", **settings) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://[\d.:]+", server.stdout.readline())
            wait_until_ready(url)
            made.check(url.rpartition(":")[2])
        finally:
            server.terminate()
    assert server.returncode == 0
