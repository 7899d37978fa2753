"""Reports that are written again, and folders that belong to another task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedReply, ScriptedServer, start_server


def test_report_writes_results_and_reports_again_without_a_server(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(lambda request: ScriptedReply("Yes"))) as server:
        assert invoke_run(server, data, out, "--strategies", "agla").exit_code == 0
    files = ("results.json", "report.md", "report.html", "manifest.json")
    written = {name: (out / name).read_text() for name in files}
    for name in files[:-1]:
        (out / name).unlink()
    result = invoke("report", out)
    assert result.exit_code == 0, output_of(result)
    assert {name: (out / name).read_text() for name in files} == written
    assert "Report:" in output_of(result)


def test_report_reads_data_that_have_moved(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke_run(server, data, out)
    before = read_results(out)
    moved = data.rename(tmp_path / "moved")
    assert "no such folder" in output_of(invoke("report", out))
    assert invoke("report", out, "--data", moved).exit_code == 0
    assert read_results(out) == before


def test_report_refuses_changed_labels_and_keeps_the_results(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    invoke_run(server, data, out)
    before = read_results(out)
    file = data / "pope" / "random.jsonl"
    file.write_text(file.read_text().replace('"yes"', '"no"', 1))
    result = invoke("report", out)
    assert result.exit_code == 1
    assert "the file pope/random.jsonl changed since the run" in output_of(result)
    assert read_results(out) == before


def test_report_of_an_incomplete_run_has_its_exit_status(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke_run(server, data, out)
    answers = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join(["{}\n", *answers[1:]]))
    result = invoke("report", out)
    assert result.exit_code == 3
    assert "1 lines are no answers and are ignored (line 1" in output_of(result)
    assert not read_results(out)["complete"]


@pytest.mark.parametrize("kept", ["plan.json", "manifest.json"])
def test_a_folder_refuses_another_task(server: ScriptedServer, data: Path, tmp_path: Path, kept: str) -> None:
    """A folder of version 0.1.0 has a manifest only, that of an interrupted run a plan only."""
    out = tmp_path / "run"
    invoke_run(server, data, out)
    for name in {"plan.json", "manifest.json"} - {kept}:
        (out / name).unlink()
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    sent = len(server.requests)
    result = invoke_run(server, data, out, task="chair")
    assert result.exit_code == 1
    assert "has a run of pope, not of chair" in output_of(result)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    assert len(server.requests) == sent


def test_an_interrupted_run_keeps_its_folder(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(lambda request: ScriptedReply("down", status=404))) as server:
        assert invoke_run(server, data, out).exit_code == 1
        assert not (out / "manifest.json").exists()
        assert "has a run of pope" in output_of(invoke_run(server, data, out, task="chair"))


def test_merge_and_rescore_refuse_the_folder_of_another_task(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    invoke_run(server, data, tmp_path / "captions", task="chair")
    shards = [tmp_path / "1", tmp_path / "2"]
    for number, shard in enumerate(shards, 1):
        invoke_run(server, data, shard, "--shard", f"{number}/2")
    merged = invoke("merge", *shards, "--out", tmp_path / "captions")
    rescored = invoke("rescore", shards[0], "--labels", data / "pope", "--out", tmp_path / "captions")
    for result in (merged, rescored):
        assert "has a run of chair, not of pope" in output_of(result)


def test_a_damaged_plan_is_reported_with_its_file(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "plan.json").write_text(json.dumps({"tasks": "pope"}))
    result = invoke_run(server, data, out)
    assert 'plan.json: is not a plan of a run: field "task": Field required' in output_of(result)
