"""Calls of the command line, in a process of its own or in this one."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from eval.cli.app import app
from tests.eval.fake_server import ScriptedReply, ScriptedServer, image_of, prompt_of, strategy_of
from tests.eval.scene_data import OBJECTS

ROOT = Path(__file__).parents[2]


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m eval` in a process of its own."""
    command = [sys.executable, "-m", "eval", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def invoke(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def invoke_run(server: ScriptedServer, data: Path, out: Path, *arguments: str, task: str = "pope") -> Result:
    """Run `eval run` against a fake server, without retries unless they are given."""
    retries = () if "--retries" in arguments else ("--retries", "0")
    return invoke("run", task, "--base-url", server.url, "--data", data, "--out", out, *retries, *arguments)


def output_of(result: Result) -> str:
    """Return output and exception of a command as one line."""
    return re.sub(r"\s+", " ", f"{result.output} {result.exception or ''}")


def read_results(out: Path) -> dict[str, Any]:
    """Read results.json of a run."""
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def read_results_without_costs(out: Path) -> dict[str, Any]:
    """Read results.json without the values that depend on the clock."""
    return {key: value for key, value in read_results(out).items() if key != "costs"}


def read_stored_answers(out: Path) -> list[dict[str, Any]]:
    """Read answers.jsonl of a run."""
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def write_jsonl(file: Path, rows: Iterable[object]) -> Path:
    """Write JSON lines and return the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def reply_by_hash(request: dict[str, Any]) -> ScriptedReply:
    """Answer yes or no to a question, or name two objects in a caption, depending on the whole request."""
    parts = [
        prompt_of(request),
        image_of(request),
        strategy_of(request),
        request.get("decoding"),
        request.get("seed"),
    ]
    number = int(hashlib.sha256(json.dumps(parts).encode()).hexdigest(), 16)
    if prompt_of(request).startswith("Is there"):
        return ScriptedReply("Yes" if number % 3 else "No.")
    first, second = OBJECTS[number % 6], OBJECTS[number // 6 % 6]
    return ScriptedReply(f"The image shows a {first}. There is a {second} too.")
