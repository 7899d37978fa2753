"""The task `mmvp` on a file in the released format, with answers of a worked example."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks.mmvp import MmvpTask, parse_letter
from eval.core.task import TaskOptions
from eval.errors import InputError
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedReply, ScriptedServer, image_of, prompt_of, start_server

HEADER = "Index,Question,Options,Correct Answer\n"
ROWS = [("A", "(a)"), ("B", "B. short"), ("A", "The answer is (a)."), ("B", "A"), ("A", "A cat"), ("B", "Long"),
        ("B", "b"), ("A", "neither")]  # fmt: skip


def write_rows(folder: Path, count: int = len(ROWS)) -> Path:
    lines = [
        f'{number},"Is pair {(number + 1) // 2} short, or long?",(a) Short (b) Long,({label.lower()})\n'
        for number, (label, _) in enumerate(ROWS[:count], 1)
    ]
    (folder / "Questions.csv").write_text(HEADER + "".join(lines))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "MMVP Images").mkdir()
    for number in range(1, len(ROWS) + 1):
        Image.new("RGB", (number, 8)).save(tmp_path / "MMVP Images" / f"{number}.jpg")
    return write_rows(tmp_path)


def answer(request: dict[str, Any]) -> ScriptedReply:
    """Answer as the worked example does: the width of the image is the number of the question."""
    content = base64.b64decode(image_of(request).partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        return ScriptedReply(ROWS[image.width - 1][1])


def test_a_pair_counts_if_both_answers_are_right(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(answer)) as server:
        result = invoke_run(server, data, out, "--strategies", "vhr", task="mmvp")
    assert result.exit_code == 0, output_of(result)
    assert prompt_of(server.requests[0]) == (
        "Is pair 1 short, or long?\nA. Short\nB. Long\nAnswer with the option's letter from the given choices directly."
    )
    results = read_results(out)
    [scope] = results["scopes"]
    assert (scope["questions"], scope["images"], scope["clusters"], results["cluster"]) == (8, 8, 4, "pair")
    metrics = scope["rows"][0]["metrics"]
    assert [metrics[name]["value"] for name in ("accuracy", "pair_accuracy")] == [0.625, 0.25]
    constants = {row["strategy"]: row["metrics"]["pair_accuracy"]["value"] for row in scope["constant_rows"]}
    assert constants == {"all A": 0, "all B": 0}
    assert scope["constant_rows"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert results["arms"][0]["notes"] == {"reader": "letter", "unparsed": 2}
    assert results["missing_bias"] is None
    assert invoke("verify", out).exit_code == 0
    assert invoke("export", out, "--strategy", "vhr", "--out", tmp_path / "official").exit_code == 0
    lines = (tmp_path / "official" / "answers.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "question_id": 2,
        "prompt": "Is pair 1 short, or long? (a) Short (b) Long",
        "answer": "(b)",
        "response": "B. short",
    }


def test_a_limited_run_asks_whole_pairs(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(answer)) as server:
        assert invoke_run(server, data, tmp_path / "run", "--limit", "3", task="mmvp").exit_code == 0
    [scope] = read_results(tmp_path / "run")["scopes"]
    assert (scope["questions"], scope["clusters"]) == (4, 2)


def test_letters_are_read_as_in_lmms_eval() -> None:
    letters = [parse_letter(text) for _, text in ROWS]
    assert letters == ["A", "B", "A", "A", "A", None, "B", None]
    assert parse_letter("Option B is right") == "B"
    assert parse_letter("") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Index,Question,Options\n1,Is it?,(a) x (b) y\n", ':1: field "Correct Answer": is not a column of the file'),
        (f"{HEADER}one,Is it?,(a) x (b) y,(a)\n", ":2: field \"Index\": is 'one', not a positive integer"),
        (f"{HEADER}1,Is it?,(a) x (b) y,(c)\n", ":2: field \"Correct Answer\": is '(c)', not (a) or (b)"),
        (f"{HEADER}1,Is it?,x or y,(a)\n", ":2: field \"Options\": is 'x or y', not (a) ... (b) ..."),
        (f"{HEADER}9,Is it?,(a) x (b) y,(a)\n", ':2: field "Index": there is no image 9.jpg under'),
        (f"{HEADER}1,Is it?,(a) x (b) y,(a)\n", ': field "Index": question 1 has no question 2 beside it'),
        (f"{HEADER}1,Is it?,(a) x (b) y,(a)\n1,Is it?,(a) x (b) y,(b)\n", ':3: field "Index": 1 is used twice'),
        (HEADER, ": has no questions"),
    ],
)
def test_invalid_files_are_refused(data: Path, content: str, message: str) -> None:
    (data / "Questions.csv").write_text(content)
    with pytest.raises(InputError) as refused:
        MmvpTask(data, TaskOptions()).load_questions()
    assert message in str(refused.value)


def test_a_question_without_its_pair_is_not_counted(data: Path) -> None:
    task = MmvpTask(data, TaskOptions())
    scores = task.score_answers(task.load_questions()[:3], ["A", "B", "A"])
    assert [score.counts.get("n") for score in scores] == [1, 1, None]
    assert [score.counts.get("both") for score in scores] == [None, 1, None]
