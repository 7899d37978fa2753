"""The public interface, and the commands of `python -m onlyseen`."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

import onlyseen

CHECK_IMPORTS = """
import sys
import onlyseen
assert "torch" not in sys.modules
from onlyseen import *
from onlyseen import errors, image_ops, logits_ops
assert "torch" in sys.modules
assert not {"transformers", "vllm", "accelerate", "fastapi"} & sys.modules.keys()
"""


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "onlyseen", *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", onlyseen.__all__)
def test_public_name_can_be_imported(name: str) -> None:
    assert getattr(onlyseen, name) is not None
    assert name in dir(onlyseen)


@pytest.mark.parametrize("module", ["errors", "image_ops", "logits_ops"])
def test_module_exports_names_of_the_private_module(module: str) -> None:
    public, private = import_module(f"onlyseen.{module}"), import_module(f"decoding.{module}")
    assert all(getattr(public, name) is getattr(private, name) for name in public.__all__)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'StrategyRunner'"):
        _ = onlyseen.StrategyRunner


def test_version_is_that_of_the_distribution() -> None:
    assert onlyseen.__version__ == version("onlyseen")


def test_import_loads_no_model_library() -> None:
    completed = subprocess.run([sys.executable, "-c", CHECK_IMPORTS], capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr


def test_help_lists_the_commands() -> None:
    completed = run_command("--help")
    assert completed.returncode == 0
    assert all(command in completed.stdout for command in ("serve", "eval", "check", "strategies"))


@pytest.mark.parametrize(("command", "option"), [("serve", "--engine"), ("eval", "score"), ("check", "PACKAGE:CLASS")])
def test_command_passes_its_options_on(command: str, option: str) -> None:
    completed = run_command(command, "--help")
    assert completed.returncode == 0, completed.stderr
    assert option in completed.stdout


def test_strategies_are_listed_with_a_summary() -> None:
    completed = run_command("strategies")
    assert completed.returncode == 0, completed.stderr
    assert "vcd         Visual contrastive decoding" in completed.stdout


def test_unknown_command_fails() -> None:
    completed = run_command("train")
    assert completed.returncode == 1
    assert "there is no command 'train'" in completed.stderr
