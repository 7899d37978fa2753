"""MME's hallucination subset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks.mme.score import SUBTASKS, parse_yes_no, score_subtask
from eval.benchmarks.mme.task import MmeTask
from eval.core.task import TaskOptions
from tests.eval.cli_driver import invoke_run, read_results, run_process
from tests.eval.fake_server import ScriptedReply, ScriptedServer, prompt_of, start_server

PARSED = {
    "yes": "yes", "No.": "no", " YES ": "yes", "y": "yes", "N": "no", "z": "other", "": "other", "1": "other",
    "Yes, there is": "yes", "no dog": "no", "not": "no", "I know": "other", "a no": "no", "The answer is yes": "other",
    "snow": "no", "eyes": "yes",
}  # fmt: skip


def test_parse_yes_no_equals_the_official_parser() -> None:
    assert {answer: parse_yes_no(answer) for answer in PARSED} == PARSED


def test_score_is_accuracy_plus_accuracy_per_image(tmp_path: Path) -> None:
    file = tmp_path / "count.txt"
    file.write_text("a.jpg\tq1\tYes\tyes\na.jpg\tq2\tNo\tNo, it\tis\nb.jpg\tq1\tYes\tmaybe\nb.jpg\tq2\tNo\tno\n")
    found = score_subtask(file)
    assert (found.accuracy, found.accuracy_plus, found.score, found.n, found.unparsed) == (0.75, 0.5, 125, 4, 1)


def test_constant_answers_stand_beside_the_score(tmp_path: Path) -> None:
    for name in SUBTASKS:
        (tmp_path / f"{name}.txt").write_text("a.jpg\tq1\tYes\tyes\na.jpg\tq2\tNo\tNo\n")
    process = run_process("score", "mme", "--results", tmp_path, "--json")
    output = json.loads(process.stdout)
    assert output["mme"]["total"] == 800
    assert {name: each["mme"]["total"] for name, each in output["constant_answers"].items()} == {
        "all yes": 200,  # half of the questions and no pair of each subtask
        "all no": 200,
    }
    header = run_process("score", "mme", "--results", tmp_path).stdout.splitlines()[0]
    assert header.split() == ["mme", "all", "yes", "all", "no"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tq\tYes\n", ":1: has 3 tab-separated fields, not 4"),
        ("a\tq\tYes\tno\n", ": 'a' has 1 questions, not 2"),
        ("a\tq\tperhaps\tno\n", """:1: field "truth": is 'perhaps', not Yes or No"""),
        ("\n", ": has no answers"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    for name in SUBTASKS:
        (tmp_path / f"{name}.txt").write_text(content)
    process = run_process("score", "mme", "--results", tmp_path)
    assert (process.returncode, process.stderr) == (1, f"error: {tmp_path / 'existence.txt'}{message}\n")


def test_a_limited_run_asks_both_questions_of_an_image(pairs: Path) -> None:
    with start_server(
        ScriptedServer(lambda request: ScriptedReply("No" if "not" in prompt_of(request) else "Yes"))
    ) as server:
        assert invoke_run(server, pairs, pairs / "run", "--limit", "1", task="mme").exit_code == 0
    scopes = read_results(pairs / "run")["scopes"]
    assert [scope["questions"] for scope in scopes] == [2, 2, 2, 2, 8]
    for scope in scopes:
        assert scope["rows"][0]["metrics"]["score"]["value"] == 2.0


def test_a_question_without_its_pair_is_not_counted(pairs: Path) -> None:
    task = MmeTask(pairs, TaskOptions())
    scores = task.score_answers(task.load_questions()[:3], ["Yes", "No", "No"])
    assert [score.counts.get("n") for score in scores] == [1, 1, None]
    assert [score.counts.get("both") for score in scores] == [None, 1, None]
