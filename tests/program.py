"""Programs that tests need beside Python's packages: found, or installed where that is allowed."""

import os
import shutil
import subprocess

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


def first(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name, path=PATHS))), None)


def install(package: str) -> None:
    """As root on Debian; elsewhere nothing happens."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", package]):
            subprocess.run(command, capture_output=True, check=False, timeout=600)
