"""Tests that a strategy in a package of its own is found, built and analysed without changes to this repository."""

import json
import subprocess
import sys

from decoding.registry import list_strategies

PROGRAM = """
import json
from decoding.errors import BadRequest
from decoding.registry import build, format_stack, list_strategies
from decoding.pipeline.dry_run import dry_run

stack = build("cautious+vhr", {"cautious": {"doubt": 1.5}})
try:
    build("cautious", {"cautious": {"doubt": 11}})
except BadRequest as error:
    param = error.param
print(json.dumps({
    "names": list(list_strategies()),
    "label": format_stack(stack),
    "doubt": stack[0].doubt,
    "branches": dry_run(stack[0]).branches,
    "needs": sorted(dry_run(stack[0]).needs),
    "refused": param,
    "schema": list_strategies()["cautious"].model_json_schema()["properties"]["doubt"]["maximum"],
}))
"""


def test_plugin_strategy_is_available_after_pip_install(plugin_env: dict[str, str]) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=plugin_env, check=True, capture_output=True, text=True
    )
    assert json.loads(completed.stdout) == {
        "names": sorted([*list_strategies(), "blurred", "brief", "cautious", "focused"]),
        "label": "cautious+vhr",
        "doubt": 1.5,
        "branches": ["blind"],
        "needs": ["branches", "logits"],
        "refused": "decoding.cautious.doubt",
        "schema": 10,
    }


def test_plugin_is_not_installed_in_this_environment(plugin_env: dict[str, str]) -> None:
    assert "cautious" not in list_strategies()
