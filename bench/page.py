"""Puts a table into docs/benchmarks.md, between its markers, and the figures beside it as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def write(name: str, table: str, figures: Mapping[str, Any]) -> None:
    page = DOCS / "benchmarks.md"
    text = page.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    measured = f"Measured {figures['date']} on {figures['machine']}; " + ", ".join(
        f"{package} {number}" for package, number in figures["versions"].items()
    )
    page.write_text(f"{before}{begin}\n\n{measured}.\n\n{table}\n\n{end}{after}")
    (DOCS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
