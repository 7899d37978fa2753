"""Comparison of two finished runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from statsmodels.stats.contingency_tables import mcnemar

from eval.core.paired_intervals import tango_interval
from eval.core.statistics import adjust_holm
from eval.errors import RunError
from eval.workflows.run_comparison import compare_runs, pair_seeds
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, read_stored_answers, reply_by_hash
from tests.eval.fake_server import ScriptedReply, ScriptedServer, start_server


def run(data: Path, out: Path, *arguments: str, task: str = "pope", salt: str = "") -> Path:
    """Run against a server whose answers depend on `salt`."""

    def script(request: dict[str, Any]) -> ScriptedReply:
        content = request["messages"][0]["content"]
        salted = [{**part, "text": part["text"] + salt} if part["type"] == "text" else part for part in content]
        return reply_by_hash({**request, "messages": [{"role": "user", "content": salted}]})

    with start_server(ScriptedServer(script)) as server:
        result = invoke_run(server, data, out, *arguments, task=task)
    assert result.exit_code == 0, output_of(result)
    return out


def read_comparison(*arguments: str | Path, out: Path) -> dict[str, Any]:
    result = invoke("compare", *arguments, "--out", out)
    assert result.exit_code == 0, output_of(result)
    document: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return document


def test_equal_strategies_are_paired_with_exact_tests(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "a", "--strategies", "agla")
    second = run(data, tmp_path / "b", "--strategies", "agla", salt=" other")
    found = read_comparison(first, second, out=tmp_path / "c")
    scope = found["scopes"][0]
    assert (scope["scope"], scope["answers"], scope["images"]) == ("random", 60, 10)
    assert [(pair["first"], pair["second"]) for pair in scope["pairs"]] == [
        ("A: plain", "B: plain"),
        ("A: agla", "B: agla"),
    ]
    rows = [json.loads(line) for line in (data / "pope" / "random.jsonl").read_text().splitlines()]
    outcomes = []
    for out in (first, second):
        texts = {each["question"]: each["text"] for each in read_stored_answers(out) if each["strategy"] == "agla"}
        outcomes.append([texts[f"random/{row['question_id']}"].lower().startswith(row["label"]) for row in rows])
    gained = sum(new and not old for old, new in zip(*outcomes, strict=True))
    lost = sum(old and not new for old, new in zip(*outcomes, strict=True))
    difference = scope["pairs"][1]["differences"]["accuracy"]
    assert gained + lost > 5
    assert (difference["gained"], difference["lost"]) == (gained, lost)
    assert difference["value"] == pytest.approx((gained - lost) / 60)
    assert difference["p"] == pytest.approx(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)
    assert (difference["tango_low"], difference["tango_high"]) == pytest.approx(tango_interval(gained, lost, 60))
    for name in ("accuracy", "f1"):
        compared = [pair["differences"][name] for pair in scope["pairs"]]
        assert [each["p_holm"] for each in compared] == pytest.approx(adjust_holm([each["p"] for each in compared]))
    for pair, row in zip(scope["pairs"], read_results(first)["scopes"][0]["rows"], strict=True):
        assert pair["first_metrics"] == row["metrics"]
    report = (tmp_path / "c" / "compare.md").read_text()
    assert f"{gained} gained, {lost} lost" in report
    assert "## random (60 questions on 10 images)" in report
    assert found["unequal"] == found["not_shared"] == []


def test_the_same_run_differs_in_nothing(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    found = read_comparison(first, tmp_path / "b", out=tmp_path / "c")
    difference = found["scopes"][-1]["pairs"][0]["differences"]["accuracy"]
    assert (difference["value"], difference["gained"], difference["lost"]) == (0, 0, 0)
    assert "no question differs" in (tmp_path / "c" / "compare.md").read_text()
    assert found["scopes"][-1]["pairs"][0]["different_answers"] == 0


def test_only_shared_questions_are_compared(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "a", "--strategies", "vcd")
    second = run(data, tmp_path / "b", "--limit", "12", "--strategies", "agla", "--max-tokens", "7", salt=" other")
    result = invoke("compare", first, second)
    output = output_of(result)
    assert result.exit_code == 0
    for text in (
        "differs: max_tokens: 64; 7",
        "has strategies that are not compared: vcd",
        "has strategies that are not compared: agla",
        "a has 144 questions that are not shared",
        "random (12 questions on",
    ):
        assert text in output, text
    pair = compare_runs(first, second, ("vcd", "agla")).scopes[0].pairs[0]
    assert (pair.first, pair.second) == ("A: vcd", "B: agla")


def test_seeds_are_paired_if_they_agree_and_crossed_otherwise(data: Path, tmp_path: Path) -> None:
    greedy = run(data, tmp_path / "greedy", "--limit", "12")
    sampled = run(data, tmp_path / "sampled", "--limit", "12", "--temperature", "1", "--seeds", "0,1")
    scope = compare_runs(greedy, sampled).scopes[0]
    pair = scope.pairs[0]
    assert {each.test for each in pair.differences.values()} == {"exchange"}
    assert pair.differences["accuracy"].gained is None
    for metrics, out in ((pair.first_metrics, greedy), (pair.second_metrics, sampled)):
        expected = read_results(out)["scopes"][0]["rows"][0]["metrics"]["accuracy"]["value"]
        assert metrics["accuracy"].value == pytest.approx(expected)
    assert pair_seeds((0, 1), (1, 0)) == [(0, 0), (1, 1)]
    assert pair_seeds((None,), (0,)) == [(None, 0)]
    assert "temperature: 0; 1" in compare_runs(greedy, sampled).unequal


def test_questions_that_are_scored_together_are_left_out_together(pairs: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        with start_server(ScriptedServer(lambda request: ScriptedReply("Yes"))) as server:
            assert invoke_run(server, pairs, tmp_path / name, task="mme").exit_code == 0
        runs.append(tmp_path / name)
    answers = (runs[1] / "answers.jsonl").read_text().splitlines(keepends=True)
    (runs[1] / "answers.jsonl").write_text("".join(answers[1:]))
    found = compare_runs(*runs)
    assert sum(scope.answers for scope in found.scopes[:-1]) == 4 * 4 - 2
    assert any(line.startswith("2 answers are left out") for line in found.not_shared)


def change_label(data: Path) -> None:
    file = data / "pope" / "random.jsonl"
    file.write_text(file.read_text().replace('"yes"', '"no"', 1))


def change_annotation(data: Path) -> None:
    file = data / "instances.json"
    file.write_text(file.read_text() + "\n")


@pytest.mark.parametrize(
    ("task", "arguments", "change", "problem"),
    [
        ("pope", ["--suffix", "Briefly."], None, "questions with another prompt (random/1"),
        ("pope", ["--parser", "vcd"], None, "has --parser official,"),
        ("pope", [], change_label, "1 questions with another label (random/1)"),
        ("chair", [], None, "is a run of pope,"),
        ("chair", ["--variant", "fixed"], None, "has --variant original,"),
        ("chair", [], change_annotation, "were scored with other files: instances.json"),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    data: Path,
    tmp_path: Path,
    task: str,
    arguments: list[str],
    change: Callable[[Path], None] | None,
    problem: str,
) -> None:
    is_other_task = "is a run of" in problem
    first = run(data, tmp_path / "a", task="pope" if is_other_task else task)
    other = Path(shutil.copytree(data, tmp_path / "other"))
    if change:
        change(other)
    second = run(other, tmp_path / "b", *arguments, task=task)
    result = invoke("compare", first, second)
    assert result.exit_code == 1
    assert problem in output_of(result)


def test_too_few_shared_questions_and_unknown_strategies_are_refused(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    first = run(data, tmp_path / "a", "--shard", "1/2")
    second = run(data, tmp_path / "b", "--shard", "2/2")
    with pytest.raises(RunError, match="share 0 of 90 and 90 questions"):
        compare_runs(first, second)
    with pytest.raises(RunError, match=r"a has no 'vcd'. It has plain\."):
        compare_runs(first, second, ("vcd", None))
    assert "no such file" in output_of(invoke("compare", first, tmp_path / "nothing"))


def test_other_images_are_not_shared(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "a")
    other = Path(shutil.copytree(data, tmp_path / "other"))
    image = other / "images" / "000000000002.png"
    image.write_bytes((other / "images" / "000000000003.png").read_bytes())
    second = run(other, tmp_path / "b")
    found = compare_runs(first, second)
    assert found.scopes[-1].answers == 9 * 18
    assert sum("has 18 questions that are not shared" in line for line in found.not_shared) == 2
