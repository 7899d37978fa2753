"""What several folders of tests share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

# No deadline: these tests run beside a training model. Derandomised: a red run can be run again.
settings.register_profile("onlyseen", deadline=None, derandomize=True, database=None)
settings.load_profile("onlyseen")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment for subprocesses in which the package of `tests/stranger` is installed. Ours is untouched."""
    source = shutil.copytree(ROOT / "tests" / "stranger", tmp_path_factory.mktemp("stranger") / "source")
    target = tmp_path_factory.mktemp("site")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run([*install, "--no-build-isolation", "--no-index", "--target", target, source], check=True)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT)]), "OMP_NUM_THREADS": "1"}
