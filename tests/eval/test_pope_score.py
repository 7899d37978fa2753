"""POPE's numbers, and the command that prints them."""

import json
from pathlib import Path

import pytest

from eval.pope.parsers import PARSERS
from eval.pope.score import correct, disagreement, score
from tests.eval.command import command, lines

KEYS = ["tp", "fp", "tn", "fn", "accuracy", "precision", "recall", "f1", "yes_ratio", "n", "unparsed"]
LABELS = ["yes", "no", "yes", "no", "yes", "no"]


def test_the_numbers() -> None:
    found = score(LABELS, ["yes", "No, none", "no", "Yes.", "", "not there"])
    assert (found.tp, found.fp, found.tn, found.fn) == (2, 1, 2, 1)
    assert found.accuracy == 4 / 6
    assert found.precision == found.recall == 2 / 3
    assert found.f1 == 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)
    assert found.yes_ratio == 0.5
    assert (found.n, found.unparsed, found.notes) == (6, 1, {})


def test_a_division_without_a_value_is_null_and_says_why() -> None:
    found = score(["yes", "no"], ["no", "no"])
    assert (found.precision, found.recall, found.f1) == (None, 0.0, None)
    assert set(found.notes) == {"precision", "f1"}
    assert score(["no"], ["yes"]).recall is None
    assert score(["no"], ["yes"]).precision == 0.0


def test_labels_of_the_official_parser() -> None:
    """Its labels are a no only if they are exactly `no`: with `No` every question counts as one to be affirmed."""
    assert score(["No", "NO"], ["yes", "no"]).tp == 1
    assert score(["No", "NO"], ["yes", "no"]).fn == 1


def test_lmms_eval_leaves_unread_answers_out_of_its_recall() -> None:
    found = score(["yes", "yes", "yes", "no"], ["Yes", "Yes, a cat", "no", "no."], PARSERS["lmms-eval"])
    assert (found.tp, found.fp, found.tn, found.fn) == (1, 0, 0, 1)
    assert (found.recall, found.accuracy, found.unparsed) == (0.5, 0.25, 2)
    assert found.yes_ratio == 0.75  # of the labels


def test_vlmevalkit_takes_unread_answers_for_missed() -> None:
    found = score(["yes", "yes", "no"], ["Yes!", "perhaps", "perhaps"], PARSERS["vlmevalkit"])
    assert (found.tp, found.fp, found.tn, found.fn) == (1, 0, 0, 1)
    assert (found.accuracy, found.unparsed) == (1 / 3, 2)


def test_vcd_counts_other_labels_in_the_total_alone() -> None:
    found = score(["yes", "maybe"], ["yes", "yes"], PARSERS["vcd"])
    assert (found.tp, found.n, found.accuracy, found.yes_ratio) == (1, 2, 0.5, 0.5)


def test_disagreement() -> None:
    assert disagreement(["yes", "no", "no"], ["yes", "no", "No."]) == 1 / 3
    assert disagreement(["yes", "no"], ["Yes", "No"]) == 0


def test_correctness_of_one_answer_agrees_with_accuracy() -> None:
    answers = ["yes", "No!", "no", "Yes.", "", "snowboard"]
    for parser in PARSERS.values():
        right = [correct(label, answer, parser) for label, answer in zip(LABELS, answers, strict=True)]
        assert sum(right) / 6 == score(LABELS, answers, parser).accuracy


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        score(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match="nothing"):
        score([], [])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return lines(
        tmp_path / "questions.jsonl",
        [{"question_id": number, "image": "a.jpg", "text": "Is there?", "label": label} for number, label in
         enumerate(LABELS, 1)],
    )  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS)
def test_the_command(questions: Path, tmp_path: Path, parser: str) -> None:
    answers = lines(tmp_path / "answers.json", [{"question": "q", "answer": "yes"} for _ in LABELS])
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--parser", parser, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert list(printed) == KEYS
    assert printed["tp"] == 3


@pytest.mark.parametrize("key", ["answer", "text", "caption", "response"])
def test_answers_may_stand_under_several_names(questions: Path, tmp_path: Path, key: str) -> None:
    answers = lines(tmp_path / "answers.jsonl", [{"question_id": n, key: "no"} for n in range(1, 7)])
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--json")
    printed = json.loads(done.stdout)
    assert (printed["tn"], printed["precision"]) == (3, None)
    assert list(printed) == [*KEYS, "notes"]


def test_questions_may_be_one_array(questions: Path, tmp_path: Path) -> None:
    """So are the official A-OKVQA and GQA files, which the official script cannot read."""
    array = tmp_path / "array.json"
    array.write_text(json.dumps([json.loads(line) for line in questions.read_text().splitlines()], indent=2))
    answers = lines(tmp_path / "answers.jsonl", [{"answer": "yes"} for _ in LABELS])
    done = command("score", "pope", "--questions", array, "--answers", answers, "--json")
    assert json.loads(done.stdout)["n"] == 6


def test_line_separators_inside_an_answer_do_not_end_the_line(questions: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [json.dumps({"answer": "Yes\u2028\u0085there"}, ensure_ascii=False) for _ in LABELS]
    answers.write_text("\r\n".join(rows) + "\r\n\n", encoding="utf-8-sig", newline="")
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert json.loads(done.stdout)["n"] == 6


def test_an_empty_answer_is_scored_and_pointed_out(questions: Path, tmp_path: Path) -> None:
    answers = lines(tmp_path / "answers.jsonl", [{"answer": "" if n == 3 else "no"} for n in range(6)])
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert json.loads(done.stdout)["fp"] == 1
    assert f'{answers}:4: field "answer": is empty' in done.stderr


def test_answers_to_other_questions_are_pointed_out(questions: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Is there a {number}?", "label": "yes"} for number in range(6)]
    lines(questions, rows)
    said = [{"question": row["text"], "answer": "Yes"} for row in rows]
    said[5]["question"] = "Is it there, the fifth?"
    answers = lines(tmp_path / "a.jsonl", said)
    assert command("score", "pope", "--questions", questions, "--answers", answers).stderr == ""
    lines(answers, [said[1], said[0], *said[2:]])
    done = command("score", "pope", "--questions", questions, "--answers", answers)
    assert 'a.jsonl:1: field "question": is ' in done.stderr
    assert done.stderr.count("warning") == 2


def test_utf_16_is_called_by_its_name(questions: Path, tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        answers = tmp_path / f"{encoding}.jsonl"
        answers.write_text('{"answer": "Yes"}\n', encoding=encoding)
        done = command("score", "pope", "--questions", questions, "--answers", answers)
        assert done.stderr == f"error: {answers}: is UTF-16 or UTF-32, not UTF-8\n"


def test_comparison(questions: Path, tmp_path: Path) -> None:
    answers = lines(tmp_path / "answers.jsonl", [{"answer": "Yes." if n else "yes"} for n in range(6)])
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--compare", "--json")
    printed = json.loads(done.stdout)
    assert list(printed["parsers"]) == list(PARSERS)
    assert printed["disagreement"] == 5 / 6
    table = command("score", "pope", "--questions", questions, "--answers", answers, "--compare")
    assert "disagree on 83.3% of the answers" in table.stdout


ANSWER = '{"answer": "yes"}\n'
BAD_ANSWERS = {
    "too few": (ANSWER * 5, ":5: is the last of 5 answers, but"),
    "too many": (ANSWER * 7, ":7: is the last of 7 answers, but"),
    "not JSON": (ANSWER * 2 + "yes\n" + ANSWER * 3, ":3: is not JSON"),
    "no object": (ANSWER * 2 + '"yes"\n' + ANSWER * 3, ":3: must be a JSON object, not a text"),
    "an empty line": (ANSWER * 2 + "\n" + ANSWER * 4, ":3: the line is empty"),
    "no answer": (ANSWER * 5 + '{"reply": "yes"}\n', ':6: field "answer": is missing'),
    "null": (ANSWER * 5 + '{"answer": null}\n', ':6: field "answer": must be a text, not null'),
    "a list": (ANSWER * 5 + '{"answer": ["yes"]}\n', ':6: field "answer": must be a text, not a list'),
    "another question": (
        '{"answer": "yes", "question_id": 2}\n' + ANSWER * 5,
        ':1: field "question_id": is 2, but the question in this place has 1',
    ),
    "nothing": ("", ": holds no objects"),
    "not UTF-8": ('{"answer": "\udcff"}\n' + ANSWER * 5, ":1: is not UTF-8"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_bad_answers_are_refused_with_file_line_and_field(questions: Path, tmp_path: Path, what: str) -> None:
    content, message = BAD_ANSWERS[what]
    answers = tmp_path / "answers.jsonl"
    answers.write_text(content, encoding="utf-8", errors="surrogateescape")
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{answers}{message}" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_labels_are_refused(tmp_path: Path) -> None:
    questions = lines(tmp_path / "q.jsonl", [{"label": "yes"}, {"question_id": 2}])
    answers = lines(tmp_path / "a.jsonl", [{"answer": "yes"}] * 2)
    done = command("score", "pope", "--questions", questions, "--answers", answers)
    assert f'{questions}:2: field "label": is missing' in done.stderr
    questions = lines(tmp_path / "q.jsonl", [{"label": "yes"}, {"label": "maybe"}])
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--parser", "lmms-eval")
    assert f"""{questions}:2: field "label": is 'maybe', and lmms-eval takes only yes or no""" in done.stderr
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert json.loads(done.stdout)["tp"] == 2
    assert "is 'maybe', not yes or no" in done.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = command("score", "pope", "--questions", tmp_path / "none.json", "--answers", tmp_path / "none.json")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'none.json'}: No such file or directory\n")


def test_many_doubts_are_counted(questions: Path, tmp_path: Path) -> None:
    answers = lines(tmp_path / "answers.jsonl", [{"answer": ""}] * 6)
    done = command("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert done.stderr.endswith("warning: and 1 more\n")
    assert done.stderr.count("is empty") == 5
