"""Preparation of a run: models, arms and controls."""

from __future__ import annotations

import json
from pathlib import Path

from tests.eval.cli_driver import invoke_run, output_of, read_results, reply_by_hash
from tests.eval.fake_server import ScriptedServer, start_server


def test_matched_controls_are_added_under_sampling(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "agla:alpha=1.0,vcd", "--temperature", "1")
    assert result.exit_code == 0, output_of(result)
    found = read_results(tmp_path / "run")
    controls = {each["label"]: each["controls"] for each in found["arms"]}
    assert controls["agla:alpha=1.0"] == ["truncate:beta=0.5", "sharpen:scale=2.0"]
    assert controls["vcd"] == ["truncate"]
    bodies = {json.dumps(each["decoding"]) for each in server.requests}
    assert '{"strategy": "sharpen", "sharpen": {"scale": 2.0}}' in bodies
    matches = [(match["strategy"], match["control"]) for match in found["scopes"][-1]["control_comparisons"]]
    assert matches == [
        ("agla:alpha=1.0", "truncate:beta=0.5"),
        ("agla:alpha=1.0", "sharpen:scale=2.0"),
        ("vcd", "truncate"),
    ]


def test_the_greedy_control_is_the_stack_without_the_strategy(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    invoke_run(server, data, tmp_path / "run", "--strategies", "agla,agla+vhr")
    found = read_results(tmp_path / "run")
    controls = {each["label"]: each["controls"] for each in found["arms"]}
    assert controls == {"plain": [], "agla": ["plain"], "agla+vhr": ["vhr"], "vhr": []}
    for scope in found["scopes"]:
        against_plain = next(row["against_plain"] for row in scope["rows"] if row["strategy"] == "agla")
        assert against_plain["accuracy"]["p_holm"] > against_plain["accuracy"]["p"]
        # One difference has one p-value and one verdict wherever it is shown.
        matched = {each["strategy"]: each["differences"] for each in scope["control_comparisons"]}
        assert matched["agla"] == against_plain


def test_the_model_suffix_selects_the_strategy(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "agla", "--strategy-via", "suffix")
    assert result.exit_code == 0, output_of(result)
    assert {each["model"] for each in server.requests} == {"fake:plain", "fake:agla"}
    assert not any("decoding" in each for each in server.requests)


def test_the_model_suffix_has_the_parameters(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    specs = "agla:alpha=1.0,agla+vhr:agla.alpha=1.0,vhr.alpha=3.0"
    result = invoke_run(server, data, tmp_path / "run", "--strategies", specs, "--strategy-via", "suffix")
    assert result.exit_code == 0, output_of(result)  # receipts with other parameters make answers invalid
    models = {each["model"] for each in server.requests}
    assert {"fake:agla:alpha=1.0", "fake:agla+vhr:agla.alpha=1.0,vhr.alpha=3.0"} < models


def test_a_server_without_strategies_supports_plain_decoding_only(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(reply_by_hash, strategies=False, model="gpt-x")) as server:
        refused = invoke_run(server, data, tmp_path / "run", "--strategies", "plain,agla")
        assert "has no /v1/strategies" in output_of(refused)
        result = invoke_run(server, data, tmp_path / "run", "--api-key", "secret")
    assert result.exit_code == 0, output_of(result)
    assert not any("decoding" in each for each in server.requests)
    assert server.headers[-1]["authorization"] == "Bearer secret"
    assert read_results(tmp_path / "run")["costs"][0]["passes_per_token"] is None
