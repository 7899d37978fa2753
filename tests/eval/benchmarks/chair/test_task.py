"""The task `chair` in a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, read_stored_answers
from tests.eval.fake_server import ScriptedReply, ScriptedServer, prompt_of, start_server, strategy_of


def test_a_run_has_the_scores_of_the_scorer(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "vhr", "--variant", "fixed", task="chair")
    assert result.exit_code == 0, output_of(result)
    assert {prompt_of(each) for each in server.requests} == {"Please describe this image in detail."}
    row = read_results(tmp_path / "run")["scopes"][0]["rows"][1]
    assert set(row["metrics"]) == {"chair_s", "chair_i", "recall", "len"}
    assert row["against_plain"]["chair_s"]["test"] == "mcnemar"
    assert row["against_plain"]["chair_i"]["test"] == "exchange"
    captions, scored = tmp_path / "captions.jsonl", tmp_path / "scored"
    plain = [answer for answer in read_stored_answers(tmp_path / "run") if answer["strategy"] == "plain"]
    captions.write_text(
        "".join(json.dumps({"image_id": int(each["question"]), "caption": each["text"]}) + "\n" for each in plain)
    )
    alone = invoke("score", "chair", "--captions", captions, "--annotations", data, "--variant", "fixed", "--json")
    expected = json.loads(alone.output)
    found = read_results(tmp_path / "run")["scopes"][0]["rows"][0]["metrics"]
    assert {name: found[name]["value"] for name in found} == pytest.approx({name: expected[name] for name in found})
    assert not scored.exists()


def test_results_have_tables_by_position_by_object_and_of_fixed(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert invoke_run(server, data, out, "--strategies", "vhr", task="chair").exit_code == 0
    fixed, positions, objects = read_results(out)["tables"]
    assert fixed["headers"] == ["CHAIR_s", "CHAIR_i", "Recall"]
    assert [row["strategy"] for row in positions["rows"]] == ["plain", "vhr"]
    # The scripted captions name their first object in the second fifth and their second object in the fourth.
    assert [value is None for value in positions["rows"][0]["values"]] == [True, False, True, False, True]
    assert sum(objects["rows"][0]["values"]) > 0
    invoke_run(server, data, tmp_path / "other", "--strategies", "vhr", "--variant", "fixed", task="chair")
    rows = read_results(tmp_path / "other")["scopes"][0]["rows"]
    values = [[row["metrics"][name]["value"] for name in ("chair_s", "chair_i", "recall")] for row in rows]
    assert [row["values"] for row in fixed["rows"]] == [pytest.approx(each) for each in values]
    for file in ("report.html", "report.md"):
        assert "Most frequent hallucinated objects" in (out / file).read_text()


def test_shorter_captions_give_warnings(data: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> ScriptedReply:
        if strategy_of(request) == "vhr":
            return ScriptedReply("Nothing.")
        return ScriptedReply("There is a dog, a chair, a cup, a boat, a kite and a car here.")

    with start_server(ScriptedServer(script)) as server:
        assert invoke_run(server, data, tmp_path / "run", "--strategies", "vhr", task="chair").exit_code == 0
    warnings = read_results(tmp_path / "run")["warnings"]
    assert (
        "vhr, captions: CHAIR_s drops together with recall: the captions mention fewer objects of either kind."
        in warnings
    )
    assert any(re.fullmatch(r"vhr, captions: Length changes by -90%\.", each) for each in warnings)
    assert "CHAIR_s drops together" in (tmp_path / "run" / "report.html").read_text()
