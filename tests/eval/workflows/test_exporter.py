"""Exported answers, read back by the scorers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.benchmarks.amber.answers import read_answers
from eval.benchmarks.mme.score import SUBTASKS
from eval.core.jsonl import ANSWER_KEYS, read_records
from eval.workflows.exporter import WRITERS, OfficialAnswer, write_mme
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, run_process
from tests.eval.fake_server import ScriptedServer

ANSWERS = [
    OfficialAnswer(1, "a.jpg", "Is there a cup?", "No, \u201cnone\u201d\u2028", "no"),
    OfficialAnswer(2, "b.jpg", "And?", ""),
]


def test_written_answers_can_be_read(tmp_path: Path) -> None:
    for name in ("pope", "llava", "chair"):
        WRITERS[name](ANSWERS, tmp_path / f"{name}.jsonl")
        assert [each.get_string(*ANSWER_KEYS) for each in read_records(tmp_path / f"{name}.jsonl")] == [
            answer.answer for answer in ANSWERS
        ]
    WRITERS["chair"](ANSWERS, tmp_path / "chair.json")
    assert json.loads((tmp_path / "chair.json").read_text())[1] == {"image_id": 2, "caption": ""}


def test_written_amber_answers_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps([{"type": "relation", "truth": "no"}] * 2))
    WRITERS["amber"](ANSWERS, tmp_path / "amber.json")
    assert [item.response for item in read_answers([tmp_path / "amber.json"], tmp_path / "annotations.json")] == [
        answer.answer for answer in ANSWERS
    ]


def test_written_mme_answers_can_be_scored(tmp_path: Path) -> None:
    answers = [
        OfficialAnswer(number, "a.jpg", f"q{number}", "Yes,\tit is\n" if number else "no", label, name)
        for name in SUBTASKS
        for number, label in enumerate(("No", "Yes"))
    ]
    write_mme(answers, tmp_path / "mme")
    process = run_process("score", "mme", "--results", tmp_path / "mme", "--json")
    assert json.loads(process.stdout)["mme"]["total"] == 800
    assert "total" in run_process("score", "mme", "--results", tmp_path / "mme").stdout


def test_an_exported_pope_run_has_the_scores_of_the_run(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    invoke_run(server, data, tmp_path / "run", "--strategies", "agla")
    assert invoke("export", tmp_path / "run", "--strategy", "agla", "--out", tmp_path / "out").exit_code == 0
    for scope in read_results(tmp_path / "run")["scopes"][:3]:
        name = f"{scope['scope']}.jsonl"
        files = ("--questions", data / "pope" / name, "--answers", tmp_path / "out" / name)
        scored = json.loads(invoke("score", "pope", *files, "--json").output)
        values = {key: each["value"] for key, each in scope["rows"][1]["metrics"].items()}
        assert values == pytest.approx({key: scored[key] for key in values})
    unknown = invoke("export", tmp_path / "run", "--strategy", "vcd", "--out", tmp_path / "out")
    assert "has no 'vcd'. It has plain, agla." in output_of(unknown)


def test_an_exported_mme_run_has_the_scores_of_the_run(server: ScriptedServer, tmp_path: Path) -> None:
    for subtask in ("existence", "count", "position", "color"):
        for number in range(4):
            image = tmp_path / "mme" / subtask / f"{number:04d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, len(subtask), 0)).save(image)
            rows = [f"Is there a dog, {label}? Please answer yes or no.\t{label}\n" for label in ("Yes", "No")]
            image.with_suffix(".txt").write_text("".join(rows))
    result = invoke_run(server, tmp_path / "mme", tmp_path / "run", "--strategies", "vhr", task="mme")
    assert result.exit_code == 0, output_of(result)
    assert invoke("export", tmp_path / "run", "--strategy", "plain", "--out", tmp_path / "out").exit_code == 0
    scored = json.loads(invoke("score", "mme", "--results", tmp_path / "out", "--json").output)["mme"]
    for scope in read_results(tmp_path / "run")["scopes"][:4]:
        assert 100 * scope["rows"][0]["metrics"]["score"]["value"] == pytest.approx(scored[scope["scope"]])
