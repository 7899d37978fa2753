"""MME's hallucination subset."""

import json
from pathlib import Path

import pytest
from PIL import Image

from eval import export
from eval.mme import SUBTASKS, read, subtask
from tests.eval.command import command
from tests.eval.fake_server import FakeServer, Reply, question, serving
from tests.eval.runs import results, run

READINGS = {
    "yes": "yes", "No.": "no", " YES ": "yes", "y": "yes", "N": "no", "z": "other", "": "other", "1": "other",
    "Yes, there is": "yes", "no dog": "no", "not": "no", "I know": "other", "a no": "no", "The answer is yes": "other",
    "snow": "no", "eyes": "yes",
}  # fmt: skip


def test_readings() -> None:
    assert {answer: read(answer) for answer in READINGS} == READINGS


def test_accuracy_and_accuracy_plus(tmp_path: Path) -> None:
    file = tmp_path / "count.txt"
    file.write_text("a.jpg\tq1\tYes\tyes\na.jpg\tq2\tNo\tNo, it\tis\nb.jpg\tq1\tYes\tmaybe\nb.jpg\tq2\tNo\tno\n")
    found = subtask(file)
    assert (found.accuracy, found.accuracy_plus, found.score, found.n, found.unparsed) == (0.75, 0.5, 125, 4, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tq\tYes\n", ":1: has 3 of the 4 parts that tabs separate"),
        ("a\tq\tYes\tno\n", ": 'a' has 1 questions, not 2"),
        ("a\tq\tperhaps\tno\n", """:1: field "truth": is 'perhaps', not Yes or No"""),
        ("\n", ": holds no answers"),
    ],
)
def test_bad_lines(tmp_path: Path, content: str, message: str) -> None:
    for name in SUBTASKS:
        (tmp_path / f"{name}.txt").write_text(content)
    done = command("score", "mme", "--results", tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'existence.txt'}{message}\n")


def test_what_is_exported_is_scored(tmp_path: Path) -> None:
    replies = [
        export.Reply(number, "a.jpg", f"q{number}", "Yes,\tit is\n" if number else "no", label, name)
        for name in SUBTASKS
        for number, label in enumerate(("No", "Yes"))
    ]
    export.mme(replies, tmp_path / "mme")
    done = command("score", "mme", "--results", tmp_path / "mme", "--json")
    assert json.loads(done.stdout)["mme"]["total"] == 800
    assert "total" in command("score", "mme", "--results", tmp_path / "mme").stdout


def test_a_question_whose_other_one_is_not_asked_counts_for_nothing(tmp_path: Path) -> None:
    for name in SUBTASKS:
        folder = tmp_path / name
        folder.mkdir()
        for at in range(2):
            Image.new("RGB", (8, 8), (at, 0, 0)).save(folder / f"{at}.png")
            (folder / f"{at}.txt").write_text(f"Is it {name} {at}?\tYes\nIs it not?\tNo\n")
    with serving(FakeServer(lambda request: Reply("No" if "not" in question(request) else "Yes"))) as server:
        assert run(server, tmp_path, tmp_path / "run", "--limit", "3", task="mme").exit_code == 0
    for part in results(tmp_path / "run")["parts"]:
        assert part["rows"][0]["metrics"]["score"]["value"] == 2.0
