"""`python -m decoding` prints the registered strategies as a Markdown table; with file names, updates it there."""

import sys
from pathlib import Path

from decoding.registry import strategies
from decoding.rehearsal import rehearse
from decoding.strategy import Strategy

BEGIN, END = "<!-- strategies -->", "<!-- /strategies -->"


def table() -> str:
    rows = [row(name, strategy) for name, strategy in strategies().items()]
    head = ["| strategy | what it does | paper | rows a step | asked before the answer |", "|---|---|---|---|---|"]
    return "\n".join(head + rows)


def row(name: str, strategy: type[Strategy]) -> str:
    summary = (sys.modules[strategy.__module__].__doc__ or "").strip().splitlines()[0]
    rehearsal = rehearse(strategy())
    asked = ", ".join(f"{kind}: {count}" for kind, count in rehearsal.questions.items()) or "nothing"
    most = 1 + len(rehearsal.branches)
    rows = f"1 to {most}" if "wakes" in strategy.hooks() else most
    return f"| `{name}` | {summary} | {strategy.paper} | {rows} | {asked} |"


def updated(text: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(updated(page.read_text()))
    if not sys.argv[1:]:
        print(table())
