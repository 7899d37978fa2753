"""`onlyseen-check` as a process, on the third-party package and on classes that break rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = '''
"""A strategy with two faults."""

from onlyseen import GenerateRequest, Step, Strategy
from torch import Tensor


class Broken(Strategy):
    """z_f = z / 0."""

    name = "broken"
    paper = "none"

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("unused", request.prompt)

    def logits(self, step: Step) -> Tensor:
        return step.scores / 0
'''


def run_check(target: str, env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onlyseen.check", target]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "target", ["cautious_strategy:Cautious", "blurred_strategy:Blurred", "focused_strategy:Focused"]
)
def test_third_party_strategy_passes(target: str, plugin_env: dict[str, str], tmp_path: Path) -> None:
    completed = run_check(target, plugin_env, tmp_path)
    assert completed.returncode == 0, completed.stdout
    assert completed.stdout.splitlines()[-1] == f"{target}: all 18 rules passed"


def test_broken_strategy_fails_with_rule_and_hook(plugin_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken_strategy.py").write_text(BROKEN)
    completed = run_check("broken_strategy:Broken", plugin_env, tmp_path)
    assert completed.returncode == 1
    lines = completed.stdout.splitlines()
    assert lines[-1] == "broken_strategy:Broken: 2 of 18 rules failed"
    assert lines[lines.index("FAIL  branches") + 1] == "      `logits` does not read the branch 'unused'"
    assert "`logits` returned" in lines[lines.index("FAIL  values") + 1]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("cautious_strategy", "is not of the form PACKAGE:CLASS"),
        ("no_such_module:Cautious", "cannot be imported: ModuleNotFoundError"),
        ("cautious_strategy:Careless", "cannot be imported: AttributeError"),
        ("pathlib:Path", "is not a subclass of onlyseen.Strategy"),
    ],
)
def test_class_that_cannot_be_loaded_exits_with_2(
    target: str, message: str, plugin_env: dict[str, str], tmp_path: Path
) -> None:
    completed = run_check(target, plugin_env, tmp_path)
    assert completed.returncode == 2
    assert message in completed.stderr
