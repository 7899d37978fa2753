"""Fixtures and settings for all tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

# No deadline, because other work may slow the machine. Derandomised, so that a failing run can be repeated.
settings.register_profile("onlyseen", deadline=None, derandomize=True, database=None)
settings.load_profile("onlyseen")


@pytest.fixture(scope="session")
def plugin_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return environment variables for subprocesses in which the package of `tests/third_party_plugin` is installed."""
    source = shutil.copytree(ROOT / "tests" / "third_party_plugin", tmp_path_factory.mktemp("plugin") / "source")
    target = tmp_path_factory.mktemp("site")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run([*install, "--no-build-isolation", "--no-index", "--target", target, source], check=True)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT)]), "OMP_NUM_THREADS": "1"}
