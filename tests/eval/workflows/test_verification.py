"""Verification of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_an_unreadable_answer_is_reported_and_requested_again(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert invoke_run(server, data, out, "--limit", "6").exit_code == 0
    first, *others = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join([*others, first.replace('"seconds":', '"seconds":null,"former":')]))
    result, line = invoke("verify", out), f"line {1 + len(others)}"
    assert result.exit_code == 1
    assert line in output_of(result)
    requests = len(server.requests)
    result = invoke_run(server, data, out, "--limit", "6")
    assert result.exit_code == 0
    assert line in output_of(result)
    assert len(server.requests) == requests + 1
    assert invoke("verify", out).exit_code == 0


FORMER_KEYS = {
    "strategy_via": "door",
    "spec": "recipe",
    "full_spec": "full",
    "requested": "asked_for",
    "truncated": "cut_short",
    "images": "pictures",
    "control_comparisons": "matches",
    "headers": "heads",
    "scopes": "parts",
}


def rename_keys(value: Any, former_keys: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [rename_keys(each, former_keys) for each in value]
    if isinstance(value, dict):
        return {former_keys.get(key, key): rename_keys(each, former_keys) for key, each in value.items()}
    return value


def test_run_of_version_0_1_0_is_verified_and_continued(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    """Its manifest and its results have other keys."""
    out = tmp_path / "run"
    invoke_run(server, data, out)
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps(rename_keys(results, FORMER_KEYS | {"arms": "competitors"})))
    assert '"competitors": ' in (out / "results.json").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    images = manifest["images"]  # a key of both versions in manifest.json
    manifest = rename_keys(manifest, FORMER_KEYS | {"arms": "contenders"}) | {"images": images}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert invoke("verify", out).exit_code == 0
    requests = len(server.requests)
    result = invoke_run(server, data, out)
    assert result.exit_code == 0, output_of(result)
    assert len(server.requests) == requests
    assert json.loads((out / "manifest.json").read_text())["strategy_via"] == manifest["door"]
    assert json.loads((out / "results.json").read_text()) == results


def test_verify_refuses_results_without_arms(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke_run(server, data, out)
    results = json.loads((out / "results.json").read_text())
    del results["arms"]
    (out / "results.json").write_text(json.dumps(results))
    result = invoke("verify", out)
    assert result.exit_code == 1
    assert 'results.json: field "arms": not results' in output_of(result)
