"""Check the architecture: allowed imports, import cycles, file lengths and names.

The folders are the architecture. These tests compare them with the import statements.
"""

import ast
import importlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("onlyseen", "server", "decoding", "eval", "embedded", "bench", "tests")
HEAVY = ("torch", "transformers", "vllm", "accelerate")
MAX_LINES = 500
MAX_FILES = 20  # Python files side by side in a folder

# folder -> modules that its files must not import; "a.b" covers "a.b.c"
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "server": (*HEAVY, "eval", "embedded", "bench", "tests", "decoding.strategies"),
    "onlyseen": ("transformers", "vllm", "accelerate", "server", "eval", "embedded", "bench", "tests"),
    "decoding": ("onlyseen", "server", "eval", "embedded", "bench", "tests", "fastapi", "starlette", "uvicorn"),
    "decoding/conformance": ("transformers", "vllm", "accelerate", "decoding.strategies"),
    "decoding/strategies": ("transformers", "vllm", "accelerate"),
    "decoding/hf_engine": ("vllm", "decoding.strategies", "decoding.vllm_engine"),
    "decoding/vllm_engine": ("decoding.strategies", "decoding.hf_engine"),
    "eval": (*HEAVY, "server", "decoding", "embedded", "bench", "tests"),
    "embedded": ("server", "decoding", "eval", "bench", "tests"),
}
# folder -> the only modules of this repository that its files may import
ALLOWED: dict[str, tuple[str, ...]] = {
    "decoding/strategies": (
        "decoding.strategy",
        "decoding.parameters",
        "decoding.plausible_contrast",
        "decoding.requests",
        "decoding.outputs",
        "decoding.drafts",
        "decoding.errors",
        "decoding.claims",
        "decoding.text.stop_string_detector",
        "decoding.logits_ops",
        "decoding.image_ops",
        "decoding.strategies",
    ),
    "onlyseen": ("onlyseen", "decoding"),
    "tests/third_party_plugin": ("onlyseen",),
    "eval": ("eval",),
    "embedded": ("embedded",),
}
LAYOUT = (
    "onlyseen/__init__.py",
    "onlyseen/py.typed",
    "server/__init__.py",
    "decoding/strategy.py",
    "decoding/requests.py",
    "decoding/pipeline/runner.py",
    "decoding/registry.py",
    "decoding/logits_ops.py",
    "decoding/image_ops.py",
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


def list_sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


SOURCES = [file for folder in OURS for file in list_sources(folder)]
PRODUCT_SOURCES = [file for file in SOURCES if ROOT / "tests" not in file.parents]


def find_imports(source: str, package: str = "") -> set[str]:
    """Find the modules that a source names: at its top, inside functions and for type checkers."""
    return list_modules(list(ast.walk(ast.parse(source))), package)


def list_modules(nodes: list[ast.AST], package: str) -> set[str]:
    """List the absolute names of the modules, and of what is imported from them."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def get_package(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).parent.parts)


def get_module(file: Path) -> str:
    return get_package(file) if file.stem == "__init__" else f"{get_package(file)}.{file.stem}"


def list_imports(file: Path) -> set[str]:
    return find_imports(file.read_text(), get_package(file))


def is_within(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_folder_imports_no_forbidden_module(folder: str) -> None:
    pairs = [(str(file), module) for file in list_sources(folder) for module in list_imports(file)]
    assert [pair for pair in pairs if is_within(pair[1], FORBIDDEN[folder])] == []


@pytest.mark.parametrize("folder", ALLOWED)
def test_folder_imports_only_allowed_modules(folder: str) -> None:
    ours = [(str(file), name) for file in list_sources(folder) for name in list_imports(file) if is_within(name, OURS)]
    # `from decoding import logits_ops` names the bare package too.
    assert [pair for pair in ours if pair[1] not in OURS and not is_within(pair[1], ALLOWED[folder])] == []


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
def test_find_imports_sees_every_form_of_import(source: str, package: str, found: str) -> None:
    assert found in find_imports(source, package)


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for the type checker count: they would only hide a circle."""
    modules = {get_module(file): file for file in PRODUCT_SOURCES}
    require_no_circle(
        {
            module: list_imports(file) & modules.keys() - {module, *list_parents(module)}
            for module, file in modules.items()
        }
    )


def test_sibling_folders_do_not_import_each_other_in_a_circle() -> None:
    """An import between two folders counts for the first folders in which their paths differ."""
    files = {get_module(file): file for file in PRODUCT_SOURCES}
    graph: dict[str, set[str]] = defaultdict(set)
    for file in PRODUCT_SOURCES:
        for module in list_imports(file) & files.keys():
            siblings = find_sibling_folders(get_package(file), get_package(files[module]))
            if siblings is not None:
                graph[siblings[0]].add(siblings[1])
    require_no_circle(graph)


@pytest.mark.parametrize(
    ("importing", "imported", "siblings"),
    [
        (
            "decoding.hf_engine.taps",
            "decoding.hf_engine.model",
            ("decoding.hf_engine.taps", "decoding.hf_engine.model"),
        ),
        ("decoding.hf_engine.taps", "decoding.text", ("decoding.hf_engine", "decoding.text")),
        ("server.routes", "decoding.text", ("server", "decoding")),
        ("decoding.hf_engine.taps", "decoding.hf_engine", None),
        ("decoding", "decoding.text", None),
    ],
)
def test_find_sibling_folders_compares_paths(importing: str, imported: str, siblings: tuple[str, str] | None) -> None:
    assert find_sibling_folders(importing, imported) == siblings


def find_sibling_folders(importing: str, imported: str) -> tuple[str, str] | None:
    """Find the first folders in which two packages differ. A folder and its own subfolder count as one."""
    for one, other in zip([*list_parents(importing), importing], [*list_parents(imported), imported], strict=False):
        if one != other:
            return one, other
    return None


def require_no_circle(graph: Mapping[str, set[str]]) -> None:
    """Fail the test if a graph of imports has a circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' <- '.join(error.args[1])}")


def list_parents(module: str) -> list[str]:
    """List the packages around a module: `from decoding import prompt` names `decoding` too."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@pytest.mark.parametrize("path", LAYOUT)
def test_layout_has_path(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("package", ["onlyseen", "server", "decoding", "eval", "embedded"])
def test_package_is_imported_from_this_repository(package: str) -> None:
    """The package index has an unrelated `decoding`, which would win if it were installed first."""
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).parent == ROOT / package


def test_no_module_has_the_name_of_a_library_or_no_subject() -> None:
    forbidden = {"vllm", "transformers", "torch", "utils", "util", "helpers", "misc", "common"}
    parts = {(str(file), part) for file in SOURCES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert [pair for pair in parts if pair[1] in forbidden] == []


def test_no_file_exceeds_the_line_limit() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in SOURCES}
    assert {file: length for file, length in lengths.items() if length > MAX_LINES} == {}


def test_no_class_name_stands_in_two_modules() -> None:
    modules: dict[str, set[str]] = defaultdict(set)
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                modules[node.name].add(get_module(file))
    assert {name: sorted(found) for name, found in modules.items() if len(found) > 1} == {}


def test_no_folder_exceeds_the_file_limit() -> None:
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in SOURCES)
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}
