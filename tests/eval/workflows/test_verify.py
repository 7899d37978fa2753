"""Verification of a run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.eval.cli_driver import invoke, invoke_run, output_of
from tests.eval.fake_server import ScriptedServer


def test_verify_reports_changed_answers_and_files(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke_run(server, data, out)
    original = (out / "answers.jsonl").read_text()
    (out / "answers.jsonl").write_text(original.replace('"text":"Yes"', '"text":"No"', 1))
    result = invoke("verify", out)
    assert result.exit_code == 1
    assert "the answers changed" in output_of(result)
    (out / "answers.jsonl").write_text(original)
    assert invoke("verify", out).exit_code == 0
    (data / "pope" / "random.jsonl").write_text((data / "pope" / "random.jsonl").read_text() + "\n")
    assert invoke("verify", out).exit_code == 1


def test_run_of_version_0_1_0_is_verified_and_continued(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    """Its manifest has the field `door`."""
    out = tmp_path / "run"
    invoke_run(server, data, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["door"] = manifest.pop("strategy_via")
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert invoke("verify", out).exit_code == 0
    requests = len(server.requests)
    result = invoke_run(server, data, out)
    assert result.exit_code == 0, output_of(result)
    assert len(server.requests) == requests
    assert json.loads((out / "manifest.json").read_text())["strategy_via"] == manifest["door"]
