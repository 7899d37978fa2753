"""Who may import whom. The folders are the architecture; these tests keep them honest."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("server", "decoding", "eval", "embedded", "bench", "tests")
HEAVY = ("torch", "transformers", "vllm", "accelerate")
LONGEST = 300

# folder -> what its files must not import; "a.b" covers "a.b.c"
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "server": (*HEAVY, "eval", "embedded", "bench", "tests", "decoding.strategies"),
    "decoding": ("server", "eval", "embedded", "bench", "tests", "fastapi", "starlette", "uvicorn"),
    "decoding/strategies": ("transformers", "vllm", "accelerate"),
    "decoding/hf_engine": ("vllm", "decoding.strategies", "decoding.vllm_engine"),
    "decoding/vllm_engine": ("decoding.strategies", "decoding.hf_engine"),
    "eval": (*HEAVY, "server", "decoding", "embedded", "bench", "tests"),
    "embedded": ("server", "decoding", "eval", "bench", "tests"),
}
# folder -> all that its files may import of ours
ALLOWED: dict[str, tuple[str, ...]] = {
    "decoding/strategies": (
        "decoding.strategy",
        "decoding.ask",
        "decoding.tensors",
        "decoding.pictures",
        "decoding.strategies",
    ),
    "tests/stranger": ("decoding.strategy", "decoding.ask", "decoding.tensors", "decoding.pictures"),
    "eval": ("eval",),
    "embedded": ("embedded",),
}
LAYOUT = (
    "server/__init__.py",
    "decoding/strategy.py",
    "decoding/ask.py",
    "decoding/stack.py",
    "decoding/registry.py",
    "decoding/tensors.py",
    "decoding/pictures.py",
    "decoding/errors.py",
    "decoding/strategies/__init__.py",
    "decoding/hf_engine/__init__.py",
    "eval/__init__.py",
    "embedded/__init__.py",
    "pyproject.toml",
    "Makefile",
    "README.md",
    "LICENSE",
)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


EVERY_SOURCE = [file for folder in OURS for file in sources(folder)]


def imports(source: str, package: str = "") -> set[str]:
    """The modules that a source names, at its top, inside functions and for type checkers alike."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def imports_of(file: Path) -> set[str]:
    return imports(file.read_text(), ".".join(file.relative_to(ROOT).parent.parts))


def within(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_file_imports_what_its_folder_must_not(folder: str) -> None:
    pairs = [(str(file), module) for file in sources(folder) for module in imports_of(file)]
    assert [pair for pair in pairs if within(pair[1], FORBIDDEN[folder])] == []


@pytest.mark.parametrize("folder", ALLOWED)
def test_some_folders_import_little_of_ours(folder: str) -> None:
    ours = [(str(file), module) for file in sources(folder) for module in imports_of(file) if within(module, OURS)]
    # `from decoding import tensors` names the bare package too.
    assert [pair for pair in ours if pair[1] not in OURS and not within(pair[1], ALLOWED[folder])] == []


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import torch.nn as nn", "server", "torch.nn"),
        ("def f():\n    from torch import nn", "server", "torch"),
        ("from decoding import strategies", "server", "decoding.strategies"),
        ("from . import strategies", "decoding.hf_engine", "decoding.hf_engine.strategies"),
        ("from ..strategies import agla", "decoding.hf_engine", "decoding.strategies"),
        ("if TYPE_CHECKING:\n    import vllm", "eval", "vllm"),
    ],
)
def test_every_way_to_import_is_seen(source: str, package: str, found: str) -> None:
    """A wall with a hole in it is worse than none."""
    assert found in imports(source, package)


@pytest.mark.parametrize("path", LAYOUT)
def test_the_layout_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("package", ["server", "decoding", "eval", "embedded"])
def test_packages_are_those_of_this_repository(package: str) -> None:
    """The package index has an unrelated `decoding`, which would win if it were installed first."""
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).parent == ROOT / package


def test_no_module_hides_a_library_or_holds_odds_and_ends() -> None:
    hidden = {"vllm", "transformers", "torch", "utils", "util", "helpers", "misc", "common"}
    parts = {(str(file), part) for file in EVERY_SOURCE for part in file.relative_to(ROOT).with_suffix("").parts}
    assert [pair for pair in parts if pair[1] in hidden] == []


def test_files_can_be_held_in_the_head() -> None:
    files = [file for file in EVERY_SOURCE if ROOT / "tests" not in file.parents]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {file: length for file, length in lengths.items() if length > LONGEST} == {}
