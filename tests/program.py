"""What tests need beside Python's packages: found, or installed where that is allowed."""

import ctypes.util
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PATHS = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"


def program(package: str, *names: str) -> str:
    """The path of the first of these programs that is here; as root, the Debian package is installed if none is."""
    found = first(names)
    if found is None:
        install(package)
        found = first(names)
    if found is None:
        pytest.skip(f"there is no {names[0]}, and apt could not install {package}")
    return found


def library(package: str, name: str) -> None:
    """Sees to it that there is lib<name>.so, as `program` does."""
    if ctypes.util.find_library(name) is None:
        install(package)
    if ctypes.util.find_library(name) is None:
        pytest.skip(f"there is no lib{name}, and apt could not install {package}")


def first(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name, path=PATHS))), None)


def install(package: str) -> None:
    """As root on Debian, one process after the other; elsewhere nothing happens."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with (Path(tempfile.gettempdir()) / "onlyseen-tests-apt.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            for command in (["apt-get", "update"], ["apt-get", "install", "-y", package]):
                subprocess.run(command, capture_output=True, check=False, timeout=600)
