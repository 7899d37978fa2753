"""Programs and libraries that tests need beside Python packages: found, or installed where that is allowed."""

import ctypes.util
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PATHS = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"


def require_program(package: str, *names: str) -> str:
    """Find one of the programs; as root, install its Debian package if there is none. Else skip the test.

    Args:
        package: Debian package with the program.
        names: Names of the program, in order of preference.

    Returns:
        Path of the program.
    """
    found = find_program(names)
    if found is None:
        install_package(package)
        found = find_program(names)
    if found is None:
        pytest.skip(f"{names[0]} is not installed, and apt could not install {package}")
    return found


def require_library(package: str, name: str) -> None:
    """Find the shared library lib<name>.so; as root, install its Debian package. Else skip the test."""
    if ctypes.util.find_library(name) is None:
        install_package(package)
    if ctypes.util.find_library(name) is None:
        pytest.skip(f"lib{name} is not installed, and apt could not install {package}")


def find_program(names: tuple[str, ...]) -> str | None:
    """Return the path of the first program that is installed."""
    return next((path for name in names if (path := shutil.which(name, path=PATHS))), None)


def install_package(package: str) -> None:
    """Install a Debian package, one process at a time; without root or apt-get, do nothing."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with (Path(tempfile.gettempdir()) / "onlyseen-tests-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for command in (["apt-get", "update"], ["apt-get", "install", "-y", package]):
                subprocess.run(command, capture_output=True, check=False, timeout=600)
