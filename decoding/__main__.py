"""`python -m decoding` prints the table of strategies in Markdown. With file names, it updates the tables there."""

import re
import sys
from pathlib import Path

from decoding.docs_tables import (
    build_deviations,
    build_family_table,
    build_full_table,
    build_summary_table,
    build_usage_table,
)

TABLES = {
    "strategies": build_summary_table,
    "strategies in full": build_full_table,
    "strategies in use": build_usage_table,
    "deviations": build_deviations,
    "families": build_family_table,
}


def update_tables(text: str) -> str:
    """Return a page with every table between `<!-- name -->` and `<!-- /name -->` generated again."""
    for name, build_table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin in text:
            table = f"{begin}\n{build_table()}\n{end}"
            text = re.sub(f"{begin}.*{end}", lambda _: table, text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(update_tables(page.read_text()))
    if not sys.argv[1:]:
        print(build_summary_table())
