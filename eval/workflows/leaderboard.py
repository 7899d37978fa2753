"""`eval leaderboard`: one page over several finished runs and models, from their stored results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from eval.errors import EvaluationError
from eval.report.leaderboard import LeaderboardRun, render_leaderboard
from eval.runs.manifest import read_manifest
from eval.workflows.run_directory import RunDirectory


def write_leaderboard(runs: Sequence[Path], out: Path) -> None:
    """Write the page.

    Args:
        runs: Folders of finished runs.
        out: The HTML file.

    Raises:
        EvaluationError: A folder is named twice, or the file cannot be written. A folder without results raises it as
            well.
    """
    folders = [folder.resolve() for folder in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise EvaluationError(f"{folder} is named twice.")
    entries = [_read_run(folder, out.resolve().parent) for folder in folders]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render_leaderboard(entries), encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"--out {out} cannot be written: {error.strerror}.") from error


def _read_run(folder: Path, start: Path) -> LeaderboardRun:
    directory = RunDirectory(folder)
    report = directory.report_file
    link = Path(os.path.relpath(report, start)).as_posix() if report.is_file() else ""
    return LeaderboardRun(folder.name, link, directory.load_results(), read_manifest(folder))
