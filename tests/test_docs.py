"""The documents say what the code does."""

import re
from pathlib import Path

import pytest

from decoding.__main__ import updated
from server import reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", ["README.md", "docs/strategies.md"])
def test_the_strategy_tables_are_fresh(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "<!-- strategies" in text
    assert updated(text) == text, "run `make docs`"


def test_the_reference_of_the_api_is_fresh() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert reference.updated(text) == text, "run `make docs`"


def test_the_tutorial_is_the_package_that_is_tested() -> None:
    """`tests/decoding/test_stranger.py` installs it, and `tests/server/test_command.py` serves it."""
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", (ROOT / "docs" / "add-a-strategy.md").read_text(), re.DOTALL)
    files = [ROOT / "tests" / "stranger" / name for name in ("stranger_strategy.py", "pyproject.toml")]
    assert blocks == [file.read_text() for file in files]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:server|decoding|eval|embedded|tests|bench|docs)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name
