"""Puts a table into docs/benchmarks.md, between its markers, and the figures beside it as JSON."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def commit() -> str:
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def write(name: str, table: str, figures: Mapping[str, Any]) -> None:
    measured = f"Measured {figures['date']} on {figures['machine']}; " + ", ".join(
        f"{package} {number}" for package, number in figures["versions"].items()
    )
    fill(DOCS / "benchmarks.md", name, f"{measured}.\n\n{table}")
    (DOCS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def fill(page: Path, name: str, content: str) -> None:
    """Replaces what stands between the markers of that name."""
    text = page.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}")
