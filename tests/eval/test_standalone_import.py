"""eval imports with only its own extra: without torch and without the other packages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from tests.eval.cli_driver import ROOT
from tests.test_architecture import list_imports, list_sources

IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}  # packages with another import name


OPTIONAL = {"spacy", "pyarrow", "ray"}  # AMBER's captions, parquet, engines; the error names it if it is missing


INDIRECT = {"markupsafe", "pydantic_core"}  # dependencies of jinja2 and of pydantic


IMPORT_ALL_MODULES = """
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


def read_extra() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", each)[0] for each in project["optional-dependencies"]["eval"]}
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_every_import_is_in_the_extra() -> None:
    roots = {name.partition(".")[0] for file in list_sources("eval") for name in list_imports(file)}
    assert roots - {"eval", *sys.stdlib_module_names} <= read_extra() | OPTIONAL | INDIRECT
    assert "torch" not in read_extra()


def test_every_module_imports_without_torch_and_other_packages() -> None:
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL_MODULES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
