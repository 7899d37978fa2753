"""eval runs where only its own extra is installed: without torch, and without the rest of the project."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from tests.eval.command import ROOT
from tests.test_architecture import imports_of, sources

NAMES = {"pillow": "PIL"}  # of packages that are imported under another name
OPTIONAL = {"spacy"}  # AMBER's captions want it, and say so where it is missing
BROUGHT = {"markupsafe"}  # by jinja2

EVERY_MODULE = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "server", "decoding"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Missing())
import eval
for module in pkgutil.walk_packages(eval.__path__, "eval."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert not {"torch", "transformers", "server", "decoding"} & sys.modules.keys()
"""


def extra() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", each)[0] for each in project["optional-dependencies"]["eval"]}
    return {NAMES.get(name, name) for name in names}


def test_every_import_of_eval_is_in_its_extra() -> None:
    roots = {name.partition(".")[0] for file in sources("eval") for name in imports_of(file)}
    assert roots - {"eval", *sys.stdlib_module_names} <= extra() | OPTIONAL | BROUGHT
    assert "torch" not in extra()


def test_every_module_of_eval_imports_without_torch_and_without_the_rest() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY_MODULE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
