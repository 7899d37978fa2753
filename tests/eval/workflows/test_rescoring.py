"""Rescoring of a finished run with other labels, such as those of RePOPE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.pope.score import compute_score
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, read_stored_answers, write_jsonl
from tests.eval.fake_server import ScriptedServer


def write_labels(data: Path, folder: Path, split: str = "random") -> list[dict[str, Any]]:
    """Write labels without the first question, with the next two turned around, and with other ids and spelling."""
    rows = [json.loads(line) for line in (data / "pope" / f"{split}.jsonl").read_text().splitlines()][1:]
    for row in rows[:2]:
        row["label"] = "no" if row["label"] == "yes" else "yes"
    moved = [
        row | {"question_id": row["question_id"] - 1, "text": row["text"].replace("image", "imange")} for row in rows
    ]
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / f"coco_repope_{split}.json", moved)
    return rows


@pytest.fixture
def run(server: ScriptedServer, data: Path, tmp_path: Path) -> Path:
    result = invoke_run(server, data, tmp_path / "run", "--strategies", "agla")
    assert result.exit_code == 0, output_of(result)
    server.requests.clear()
    return tmp_path / "run"


def test_finished_run_is_scored_with_the_labels_of_a_folder(
    server: ScriptedServer, data: Path, tmp_path: Path, run: Path
) -> None:
    rows = {split: write_labels(data, tmp_path / "repope", split) for split in ("random", "popular", "adversarial")}
    before = read_results(run)
    result = invoke("rescore", run, "--labels", tmp_path / "repope")
    assert result.exit_code == 0, output_of(result)
    assert not server.requests
    assert read_results(run) == before
    out = tmp_path / "run-repope"
    results = read_results(out)
    assert results["title"] == "POPE with the labels of repope"
    texts = {answer["question"]: answer["text"] for answer in read_stored_answers(out) if answer["strategy"] == "plain"}
    prompts = {row["text"]: row for row in rows["random"]}
    assert len(prompts) <= 59
    expected = compute_score(
        [row["label"] for row in rows["random"]], [texts[f"random/{row['question_id']}"] for row in rows["random"]]
    )
    scope = results["scopes"][0]
    metrics = {name: each["value"] for name, each in scope["rows"][0]["metrics"].items()}
    assert scope["questions"] == 59
    for name in ("accuracy", "f1", "recall", "yes_ratio"):
        assert metrics[name] == pytest.approx(getattr(expected, name))
    assert metrics["specificity"] == expected.tn / (expected.tn + expected.fp)
    [table] = results["tables"]
    assert table["headers"][:4] == ["matched", "dropped", "unanswered", "moved ids"]
    counts = dict(zip(table["headers"], table["rows"][0]["values"], strict=True))
    assert (counts["matched"], counts["dropped"], counts["unanswered"]) == (59, 1, 0)
    assert (counts["yes->dropped"], counts["yes->no"], counts["no->yes"], counts["moved ids"]) == (1, 1, 1, 59)
    assert "random: matched 59, dropped 1, unanswered 0, moved ids 59" in output_of(result)
    assert "Questions with other labels" in (out / "report.md").read_text()
    assert "Specificity" in (out / "report.html").read_text()
    assert invoke("verify", out).exit_code == 0
    (tmp_path / "repope" / "coco_repope_random.json").write_text("")
    assert invoke("verify", out).exit_code == 1


def test_one_file_scores_its_split(data: Path, tmp_path: Path, run: Path) -> None:
    write_labels(data, tmp_path / "repope")
    result = invoke(
        "rescore", run, "--labels", tmp_path / "repope" / "coco_repope_random.json", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, output_of(result)
    assert [scope["scope"] for scope in read_results(tmp_path / "out")["scopes"]] == ["random"]


def test_repope_names_the_files_in_the_data_folder(
    server: ScriptedServer, data: Path, tmp_path: Path, run: Path
) -> None:
    write_labels(data, data)
    result = invoke("rescore", run, "--labels", "repope")
    assert result.exit_code == 0, output_of(result)
    assert read_results(tmp_path / "run-repope")["title"] == "POPE with the labels of repope"
    again = invoke_run(server, data, tmp_path / "other", "--labels", "repope")
    assert again.exit_code == 0, output_of(again)
    assert len(server.requests) == 59  # A run with these labels asks only the questions that have one.


def test_labels_that_do_not_fit_are_refused(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert invoke_run(server, data, out, "--limit", "10").exit_code == 0
    write_labels(data, tmp_path / "repope")
    command = ("rescore", out, "--labels", tmp_path / "repope")
    refused = invoke(*command)
    assert refused.exit_code == 1
    assert "labels of questions that the split random of the run lacks" in output_of(refused)
    assert invoke(*command, "--allow-missing").exit_code == 0
    [table] = read_results(tmp_path / "run-repope")["tables"]
    matched, dropped, unanswered = table["rows"][0]["values"][:3]
    assert (matched + dropped, matched + unanswered) == (10, 59)
    assert "is the folder of the run" in output_of(invoke(*command, "--allow-missing", "--out", out))
    assert "no file of labels has one of the names" in output_of(invoke("rescore", out, "--labels", out))
    assert "no file of labels has one of the names" in output_of(invoke("rescore", out, "--labels", "repope"))


def test_only_pope_has_other_labels(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert invoke_run(server, data, out, "--limit", "2", task="chair").exit_code == 0
    assert "Only pope has other labels" in output_of(invoke("rescore", out, "--labels", "repope"))
    refused = invoke_run(server, data, out, "--labels", "repope", task="chair")
    assert "chair has no other labels" in output_of(refused)
