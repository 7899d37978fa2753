"""Tables of measurements in the documentation, and their figures as JSON in `bench/results/`."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "bench" / "results"


def write_results(name: str, table: str, figures: Mapping[str, Any]) -> None:
    """Write a table into docs/benchmarks.md and the figures into bench/results/.

    Args:
        name: Name of the section and of the JSON file.
        table: Markdown table.
        figures: Figures of the table, with `date`, `machine` and `versions`.
    """
    fill_section(DOCS / "benchmarks.md", name, f"{describe_origin(figures)}\n\n{table}")
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def describe_origin(figures: Mapping[str, Any]) -> str:
    """Return date, machine and versions of a measurement as a sentence."""
    versions = ", ".join(f"{package} {number}" for package, number in figures["versions"].items())
    return f"Measured {figures['date']} on {figures['machine']}; {versions}."


def fill_section(page: Path, name: str, content: str) -> None:
    """Replace the text between the markers of a section."""
    text = page.read_text()
    start_marker, end_marker = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(start_marker)
    _, after = rest.split(end_marker)
    page.write_text(f"{before}{start_marker}\n\n{content}\n\n{end_marker}{after}")


def format_figures(parts: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Format named figures of several parts as a Markdown table."""
    lines = ["| part | measure | value |", "|---|---|---|"]
    rows = [f"| {part} | {name} | {value} |" for part, figures in parts for name, value in figures.items()]
    return "\n".join(lines + rows)


def describe_machine() -> dict[str, object]:
    """Return the date, the CPU, the load and the versions of a measurement."""
    return {
        "date": date.today().isoformat(),
        "machine": f"a CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads, "
        f"load average {os.getloadavg()[0]:.1f} at the end",
        "versions": {name: version(name) for name in ("onlyseen", "torch", "transformers")}
        | {"commit": describe_commit()},
        "python": platform.python_version(),
    }


def describe_commit() -> str:
    """Return the commit of the working tree, with `-dirty` if it has changes other than results and documents."""

    def run_git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = run_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!docs")
    return run_git("describe", "--always") + ("-dirty" if changed else "")
