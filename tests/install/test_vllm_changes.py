"""The list of vLLM's methods that differ between two releases."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from install import vllm_changes
from install.vllm_changes import find_changes

FILE = "vllm/v1/core/sched/scheduler.py"
OLD = """
class Scheduler:
    def kept(self):
        return 1  # one

    def longer(self, request):
        return request

    def removed(self): ...

def function(a): ...
"""
NEW = """
class Scheduler:
    def kept(self):
        # Another comment.
        return 1

    def longer(self, request, limit=None):
        request.limit = limit
        return request

async def function(a): ...
"""


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a folder and a wheel."""
    names = ("Scheduler.kept", "Scheduler.longer", "Scheduler.removed", "function")
    monkeypatch.setattr(vllm_changes, "METHODS", {FILE: names, "vllm/missing.py": ("nothing",)})
    folder, wheel = tmp_path / "old", tmp_path / "new.whl"
    (folder / FILE).parent.mkdir(parents=True)
    (folder / FILE).write_text(OLD)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(FILE, NEW)
    return folder, wheel


def test_changes_are_described(releases: tuple[Path, Path]) -> None:
    assert [change.describe() for change in find_changes(*releases)] == [
        f"{FILE}: Scheduler.longer: 3 changed lines; arguments (self, request) -> (self, request, limit=None)",
        f"{FILE}: Scheduler.removed: removed",
        f"{FILE}: function: 2 changed lines",
        "vllm/missing.py: nothing: missing in both",
    ]


def test_equal_releases_have_no_changes(releases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_changes, "METHODS", {FILE: ("Scheduler.kept", "function")})
    assert list(find_changes(releases[0], releases[0])) == []


def test_script_exits_with_1_if_a_method_differs(tmp_path: Path) -> None:
    command = [sys.executable, vllm_changes.__file__, tmp_path, tmp_path, "--diff"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 1
    assert completed.stdout.splitlines()[-1].endswith("methods differ.")
