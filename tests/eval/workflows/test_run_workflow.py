"""Whole runs through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks.pope.score import compute_score
from eval.core.paired_intervals import tango_interval
from eval.report.formatting import MINUS
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, read_stored_answers
from tests.eval.fake_server import ScriptedReply, ScriptedServer, prompt_of, strategy_of


def test_every_strategy_receives_the_same_questions(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "plain,agla,vcd")
    assert result.exit_code == 0, output_of(result)
    prompts = {
        name: sorted(prompt_of(each) for each in server.requests if strategy_of(each) == name)
        for name in ("plain", "agla")
    }
    assert prompts["plain"] == prompts["agla"]
    assert len(prompts["plain"]) == 60  # three splits of 60 share their positive questions and all three absent objects
    assert all(each["temperature"] == 0 and "seed" not in each for each in server.requests)


def test_a_repeated_run_sends_no_request_and_gives_the_same_results(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    invoke_run(server, data, tmp_path / "run", "--strategies", "plain,agla")
    sent, before = len(server.requests), read_results(tmp_path / "run")
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "plain,agla")
    assert result.exit_code == 0
    assert len(server.requests) == sent
    assert read_results(tmp_path / "run") == before
    assert invoke("verify", tmp_path / "run").exit_code == 0


def test_another_fingerprint_of_the_weights_invalidates_stored_answers(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    server.fingerprint = "before"
    invoke_run(server, data, tmp_path / "run")
    sent = len(server.requests)
    server.fingerprint = "after"
    server.script = lambda request: ScriptedReply("No")
    invoke_run(server, data, tmp_path / "run")
    assert len(server.requests) == 2 * sent
    assert {each["metrics"]["yes_ratio"]["value"] for each in read_results(tmp_path / "run")["scopes"][-1]["rows"]} == {
        0
    }


def test_results_agree_with_the_scorer(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke_run(server, data, out)
    texts = {(answer["question"]): answer["text"] for answer in read_stored_answers(out)}
    rows = [json.loads(line) for line in (data / "pope" / "random.jsonl").read_text().splitlines()]
    expected = compute_score([row["label"] for row in rows], [texts[f"random/{row['question_id']}"] for row in rows])
    scope = read_results(out)["scopes"][0]
    found = {name: estimate["value"] for name, estimate in scope["rows"][0]["metrics"].items()}
    assert scope["scope"] == "random"
    for name in ("accuracy", "f1", "precision", "recall", "yes_ratio"):
        assert found[name] == pytest.approx(getattr(expected, name), abs=1e-12)


def test_constant_answers_stand_in_every_table(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke_run(server, data, out)
    rows = [json.loads(line) for line in (data / "pope" / "popular.jsonl").read_text().splitlines()]
    expected = compute_score([row["label"] for row in rows], ["Yes"] * len(rows))
    scope = read_results(out)["scopes"][1]
    assert [row["strategy"] for row in scope["constant_rows"]] == ["all yes", "all no"]
    metrics = scope["constant_rows"][0]["metrics"]
    assert metrics["f1"]["value"] == pytest.approx(expected.f1)
    assert metrics["f1"]["low"] is None  # every image has three questions of each label
    assert (out / "report.md").read_text().count("\n| all no |") == 4
    assert (out / "report.html").read_text().count("constant answer</span>") == 8
    assert output_of(result).count("all yes") == 4


def test_results_without_newer_numbers_are_verified(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke_run(server, data, out)
    results = read_results(out)
    for scope in results["scopes"]:
        del scope["constant_rows"]
    (out / "results.json").write_text(json.dumps(results))
    assert invoke("verify", out).exit_code == 0
    results["scopes"][0]["rows"][0]["metrics"]["f1"]["value"] += 1e-9
    (out / "results.json").write_text(json.dumps(results))
    assert invoke("verify", out).exit_code == 1


def test_seeds_differ_by_question_and_agree_between_strategies(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    invoke_run(
        server, data, tmp_path / "run", "--strategies", "vhr", "--temperature", "1", "--seeds", "0,1", "--limit", "12"
    )
    seeds = {name: [each["seed"] for each in server.requests if strategy_of(each) == name] for name in ("plain", "vhr")}
    assert sorted(seeds["plain"]) == sorted(seeds["vhr"])
    assert len(set(seeds["plain"])) == len(seeds["plain"])
    tests = {
        each["test"]
        for row in read_results(tmp_path / "run")["scopes"][0]["rows"]
        for each in row["against_plain"].values()
    }
    assert tests == {"exchange"}  # several answers to a question are not independent
    for report in ("report.md", "report.html"):
        assert "24 answers under 2 seeds on 7 images" in (tmp_path / "run" / report).read_text()


def test_equal_answers_bound_the_difference_by_the_number_of_questions(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    """Previously, the interval of every metric was [+0.0, +0.0]."""
    server.script = lambda request: ScriptedReply("No" if "kite" in prompt_of(request) else "Yes")
    assert invoke_run(server, data, tmp_path / "run", "--strategies", "agla").exit_code == 0
    scope = read_results(tmp_path / "run")["scopes"][0]
    [row] = [row for row in scope["rows"] if row["against_plain"]]
    accuracy, f1 = row["against_plain"]["accuracy"], row["against_plain"]["f1"]
    assert scope["questions"] == 60
    assert (accuracy["value"], accuracy["gained"], accuracy["lost"]) == (0, 0, 0)
    bound = 1.959963985**2 / (60 + 1.959963985**2)
    assert (accuracy["low"], accuracy["high"]) == (pytest.approx(-bound), pytest.approx(bound))
    assert (f1["value"], f1["low"], f1["high"]) == (0, None, None)
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"+0.0 [{MINUS}6.0, +6.0]<br>no question differs" in report
    assert "[+0.0, +0.0]" not in report
    assert invoke("verify", tmp_path / "run").exit_code == 0


def test_tangos_interval_stands_beside_the_bootstrap(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    invoke_run(server, data, tmp_path / "run", "--strategies", "agla")
    for scope in read_results(tmp_path / "run")["scopes"][:1]:
        [row] = [row for row in scope["rows"] if row["against_plain"]]
        found = row["against_plain"]["accuracy"]
        bounds = tango_interval(found["gained"], found["lost"], scope["questions"])
        assert (found["tango_low"], found["tango_high"]) == pytest.approx(bounds)
        assert found["gained"] + found["lost"] > 0
        assert found["low"] != found["tango_low"]
