"""Compare the documentation with the code, and check its links and its prose."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from decoding.__main__ import update_tables
from server import api_reference

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "CHANGELOG.md",
    ROOT / "embedded" / "README.md",
    ROOT / "bench" / "results" / "log.md",
]
PLUGIN_FILES = (
    "cautious_strategy.py",
    "blurred_strategy.py",
    "focused_strategy.py",
    "brief_strategy.py",
    "pyproject.toml",
)
TEXTS = {".py", ".md", ".sh", ".html", ".yml", ".yaml", ".toml", ".j2", ".Dockerfile"}
MAX_WALK = 20  # files from the route to the token
MAX_WORDS = 20  # of a sentence, on average over a page


@pytest.mark.parametrize(
    ("page", "table"),
    [("README.md", "strategies"), ("docs/strategies.md", "strategies"), ("docs/add-a-family.md", "families")],
)
def test_tables_are_up_to_date(page: str, table: str) -> None:
    text = (ROOT / page).read_text()
    assert f"<!-- {table}" in text
    assert update_tables(text) == text, "run `make docs`"


def test_api_reference_is_up_to_date() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert api_reference.update_page(text) == text, "run `make docs`"


def test_tutorial_shows_the_files_of_the_tested_package() -> None:
    """Other tests install this package and serve its strategy."""
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", (ROOT / "docs" / "add-a-strategy.md").read_text(), re.DOTALL)
    files = [ROOT / "tests" / "third_party_plugin" / name for name in PLUGIN_FILES]
    assert blocks == [file.read_text() for file in files]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text) + re.findall(r"^\[[^\]]+\]: *([^\s#]+)", text, re.MULTILINE):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    for name in re.findall(r"`((?:server|decoding|eval|embedded|tests|bench|docs)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


@cache
def list_definitions() -> frozenset[str]:
    """List classes, functions, methods and assigned names of the product, as `name` and `Class.name`."""
    found: set[str] = set()
    for folder in ("server", "decoding", "eval", "embedded", "onlyseen"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text())
            found |= list_names(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    found |= {f"{node.name}.{name}" for name in list_names(node)} | list_names(node)
    return frozenset(found)


def list_names(scope: ast.Module | ast.ClassDef) -> set[str]:
    """List the names that the body of a module or class defines."""
    names: set[str] = set()
    for node in scope.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                names.add(name)
    return names


def list_glossary_names() -> list[str]:
    """List what the glossary's last column has in backticks."""
    rows = re.findall(r"^\|.*\| (.*) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("name", list_glossary_names())
def test_glossary_name_exists(name: str) -> None:
    assert (ROOT / name).is_file() if "/" in name else name in list_definitions()


@cache
def split_walk() -> dict[str, str]:
    """Split `docs/request.md` at its headings."""
    _, *sections = (ROOT / "docs" / "request.md").read_text().split("\n## ")
    return {heading: text for heading, _, text in (section.partition("\n") for section in sections)}


def list_walk(*headings: str) -> list[tuple[int, str, str]]:
    """List the steps under some headings: number, file and function."""
    steps = [
        re.findall(r"^(\d+)\. `([\w/]+\.py)`, `([\w.]+)`: ", split_walk()[each], re.MULTILINE) for each in headings
    ]
    return [(int(number), file, name) for found in steps for number, file, name in found]


@pytest.mark.parametrize("engine", ["The transformers engine", "The vLLM engine"])
def test_request_walk_enters_at_most_20_files_once(engine: str) -> None:
    headings = "From the route to the engine", engine, "From the token to the client"
    named = [file for each in headings for file in re.findall(r"`([\w/]+\.py)`", split_walk()[each])]
    steps = list_walk(*headings)
    assert [file for _, file, _ in steps] == named
    assert [number for number, *_ in steps] == list(range(1, len(set(named)) + 1))
    assert len(named) <= MAX_WALK
    assert f"The path has {len(named)} files with either engine" in (ROOT / "docs" / "request.md").read_text()


def test_request_walk_names_functions_of_its_files() -> None:
    for _, file, name in list_walk(*(heading for heading in split_walk() if heading != "Files beside the path")):
        tree = ast.parse((ROOT / file).read_text())
        classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        scope, _, function = name.rpartition(".")
        assert function in list_names(classes[scope] if scope else tree), f"{name} in {file}"


def test_request_walk_names_definitions() -> None:
    names = re.findall(r"`([A-Za-z_][\w.]*)`", (ROOT / "docs" / "request.md").read_text())
    assert [name for name in names if name not in list_definitions()] == []


def split_sentences(markdown: str) -> list[str]:
    """Split the prose of a page: without code, tables, generated parts, headings and images."""
    text = re.sub(r"```.*?```|<!-- ([\w -]+) -->.*?<!-- /\1 -->", "\n\n", markdown, flags=re.DOTALL)
    text = re.sub(r"^(?:[|#<]|!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    sentences = [each for paragraph in paragraphs for each in re.split(r"(?<=[.!?])\s+", paragraph)]
    return [sentence for sentence in sentences if re.search(r"\w", sentence)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short_on_average(page: Path) -> None:
    lengths = [len(re.findall(r"\S*\w\S*", sentence)) for sentence in split_sentences(page.read_text())]
    assert sum(lengths) / len(lengths) <= MAX_WORDS


def test_no_text_installs_a_distribution_of_the_index_under_our_name() -> None:
    """The index can have a distribution of this name that is not ours. Extras are installed from the folder."""
    folders = ("server", "decoding", "eval", "embedded", "onlyseen", "bench", "docs", "docker", "install", "examples")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in TEXTS]
    for file in (*files, *ROOT.glob("*.md"), ROOT / "Makefile"):
        for line in re.findall(r"\b(?:pipx?|uv|uvx|poetry)\b.*\b(?:install|add|run)\b.*", file.read_text()):
            assert not re.search(r"""[\s"'`]onlyseen(?:[\[=<>~\s"'`]|$)""", line.partition("install")[2]), (
                f"{file}: {line}"
            )
