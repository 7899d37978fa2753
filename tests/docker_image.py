"""Docker images built without Docker: the commands of a Dockerfile, in a clean folder with the installed packages."""

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

from tests.server.harness import wait_until_ready

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
OFFLINE_PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
    "PIP_QUIET": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
"""pip downloads nothing and fails if a package is not installed already. A 0 turns build isolation off."""


@dataclass(frozen=True)
class DockerImage:
    """The text of a Dockerfile, and the folder that replaces the root of the file system."""

    text: str
    folder: Path

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the image."""
        site = next(path for path in sys.path if path.endswith("site-packages"))
        variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": site, "HOME": str(self.folder)}
        for line in self._instructions("ENV"):
            variables |= dict(setting.split("=", 1) for setting in line.split())
        return variables | {"PATH": f"{self.folder}/venv/bin:/usr/bin:/bin"}

    def install(self) -> None:
        """Run the COPY instructions and the RUN instructions that install Python packages."""
        app = self.folder / "app"
        for line in self._instructions("COPY"):
            *sources, target = line.split()
            for source in sources:
                destination = app / target / (source if target.endswith("/") else "")
                destination.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, destination)
        venv.create(self.folder / "venv", with_pip=True)
        defaults = dict(line.split("=", 1) for line in self._instructions("ARG"))
        for line in self._instructions("RUN"):
            if "pip install" in line:
                command = re.sub(r"^.* -m venv /venv && ", "", line).replace("/tmp/", f"{self.folder}/")
                subprocess.run(
                    ["sh", "-ec", command], cwd=app, env=self.environment() | defaults | OFFLINE_PIP, check=True
                )

    def start(self, *options: str, **settings: str) -> subprocess.Popen[str]:
        """Start the entry point with further options and environment variables."""
        command, environment = json.loads(self._instructions("ENTRYPOINT")[0]), self.environment() | settings
        binary = self.folder / "venv" / "bin" / command[0]
        cwd = self.folder / "app"
        return subprocess.Popen(
            [binary, *command[1:], *options], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
        )

    def check_health(self, port: str) -> None:
        """Run the health check against a port; an unhealthy server raises CalledProcessError."""
        (command,) = re.findall(r"CMD (\[.*\])", self._instructions("HEALTHCHECK")[0])
        parts = [part.replace("8000", port) for part in json.loads(command)]
        subprocess.run(parts, env=self.environment(), check=True)

    def _instructions(self, name: str) -> list[str]:
        return re.findall(rf"^{name} (.+)$", self.text.replace("\\\n", ""), re.MULTILINE)


def build_image(name: str, folder: Path, replacements: Mapping[str, str] | None = None) -> DockerImage:
    """Build the image of a Dockerfile.

    Args:
        name: Name of the Dockerfile.
        folder: Root of the image's file system.
        replacements: Packages of the Dockerfile whose installed build has another name.

    Returns:
        The installed image.
    """
    text = (DOCKER / f"{name}.Dockerfile").read_text()
    for package, replacement in (replacements or {}).items():
        assert package in text
        text = text.replace(package, replacement)
    image = DockerImage(text, folder)
    image.install()
    return image


def assert_serves(image: DockerImage, **settings: str) -> None:
    """Assert that the image's server starts, prints its address, becomes ready and healthy, and stops cleanly."""
    with image.start(ONLYSEEN_PORT="0", **settings) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://[\d.:]+", server.stdout.readline())
            wait_until_ready(url)
            image.check_health(url.rpartition(":")[2])
        finally:
            server.terminate()
    assert server.returncode == 0
