"""Runs against the fake server, as a user starts them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from eval.cli import app
from tests.eval.fake_server import FakeServer, Reply, picture, question, strategy
from tests.eval.scenes import OBJECTS


def draw(request: dict[str, Any]) -> int:
    """A number that follows from all that the answer may depend on."""
    said = [question(request), picture(request), strategy(request), request.get("decoding"), request.get("seed")]
    return int(hashlib.sha256(json.dumps(said).encode()).hexdigest(), 16)


def talkative(request: dict[str, Any]) -> Reply:
    """Yes or no to a question, two objects for a caption."""
    number = draw(request)
    if question(request).startswith("Is there"):
        return Reply("Yes" if number % 3 else "No.")
    one, other = OBJECTS[number % 6], OBJECTS[number // 6 % 6]
    return Reply(f"The image shows a {one}. There is a {other} too.")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(server: FakeServer, data: Path, out: Path, *arguments: str, task: str = "pope") -> Result:
    patience = () if "--retries" in arguments else ("--retries", "0")
    return invoke("run", task, "--base-url", server.url, "--data", data, "--out", out, *patience, *arguments)


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def quality(out: Path) -> dict[str, Any]:
    """The results without what depends on the clock."""
    return {key: value for key, value in results(out).items() if key != "costs"}


def told(result: Result) -> str:
    return re.sub(r"\s+", " ", f"{result.output} {result.exception or ''}")
