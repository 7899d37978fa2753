"""A strategy in a package of its own is found, built and rehearsed without a line of ours being touched."""

import json
import subprocess
import sys

from decoding.registry import strategies

PROGRAM = """
import json
from decoding.errors import BadRequest
from decoding.registry import build, label, strategies
from decoding.rehearsal import rehearse

stack = build("cautious+vhr", {"cautious": {"doubt": 1.5}})
try:
    build("cautious", {"cautious": {"doubt": 11}})
except BadRequest as refused:
    param = refused.param
print(json.dumps({
    "names": list(strategies()),
    "label": label(stack),
    "doubt": stack[0].doubt,
    "branches": rehearse(stack[0]).branches,
    "needs": sorted(rehearse(stack[0]).needs),
    "refused": param,
    "schema": strategies()["cautious"].model_json_schema()["properties"]["doubt"]["maximum"],
}))
"""


def test_a_strangers_strategy_is_installed_by_pip_alone(stranger: dict[str, str]) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=stranger, check=True, capture_output=True, text=True)
    assert json.loads(ran.stdout) == {
        "names": sorted([*strategies(), "cautious"]),
        "label": "cautious+vhr",
        "doubt": 1.5,
        "branches": ["cautious/blind"],
        "needs": ["branches", "logits"],
        "refused": "decoding.cautious.doubt",
        "schema": 10,
    }


def test_it_is_installed_for_nobody_else(stranger: dict[str, str]) -> None:
    assert "cautious" not in strategies()
