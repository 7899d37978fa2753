"""`python -m decoding` prints the registered strategies as a Markdown table; with file names, updates it there."""

import re
import sys
from pathlib import Path

from decoding.tables import in_full, summary

TABLES = {"strategies": summary, "strategies in full": in_full}


def updated(text: str) -> str:
    """Every table between `<!-- its name -->` and `<!-- /its name -->` made anew."""
    for name, made in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin in text:
            text = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{made()}\n{end}", text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(updated(page.read_text()))
    if not sys.argv[1:]:
        print(summary())
