"""The command `score pope`, and errors in question and answer files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks.pope.parsers import PARSERS
from tests.eval.benchmarks.pope.test_score import LABELS
from tests.eval.cli_driver import run_process, write_jsonl

KEYS = ["tp", "fp", "tn", "fn", "accuracy", "precision", "recall", "f1", "yes_ratio", "n", "unparsed"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(
        tmp_path / "questions.jsonl",
        [{"question_id": number, "image": "a.jpg", "text": "Is there?", "label": label} for number, label in
         enumerate(LABELS, 1)],
    )  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS)
def test_json_output_has_all_keys(questions: Path, tmp_path: Path, parser: str) -> None:
    answers = write_jsonl(tmp_path / "answers.json", [{"question": "q", "answer": "yes"} for _ in LABELS])
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--parser", parser, "--json")
    assert (process.returncode, process.stderr) == (0, "")
    output = json.loads(process.stdout)
    assert list(output) == [*KEYS, "constant_answers"]
    assert output["tp"] == 3
    constants = output["constant_answers"]
    assert list(constants["all yes"]) == KEYS
    assert (constants["all yes"]["recall"], constants["all yes"]["precision"], constants["all no"]["tn"]) == (1, 0.5, 3)


@pytest.mark.parametrize("key", ["answer", "text", "caption", "response"])
def test_answers_are_read_from_several_keys(questions: Path, tmp_path: Path, key: str) -> None:
    answers = write_jsonl(tmp_path / "answers.jsonl", [{"question_id": n, key: "no"} for n in range(1, 7)])
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--json")
    output = json.loads(process.stdout)
    assert (output["tn"], output["precision"]) == (3, None)
    assert list(output) == [*KEYS, "notes", "constant_answers"]


def test_questions_may_be_one_array(questions: Path, tmp_path: Path) -> None:
    """The official A-OKVQA and GQA files are arrays, which the official script cannot read."""
    array = tmp_path / "array.json"
    array.write_text(json.dumps([json.loads(line) for line in questions.read_text().splitlines()], indent=2))
    answers = write_jsonl(tmp_path / "answers.jsonl", [{"answer": "yes"} for _ in LABELS])
    process = run_process("score", "pope", "--questions", array, "--answers", answers, "--json")
    assert json.loads(process.stdout)["n"] == 6


def test_line_separators_inside_an_answer_do_not_end_the_line(questions: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [json.dumps({"answer": "Yes\u2028\u0085there"}, ensure_ascii=False) for _ in LABELS]
    answers.write_text("\r\n".join(rows) + "\r\n\n", encoding="utf-8-sig", newline="")
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert json.loads(process.stdout)["n"] == 6


def test_an_empty_answer_is_scored_with_a_warning(questions: Path, tmp_path: Path) -> None:
    answers = write_jsonl(tmp_path / "answers.jsonl", [{"answer": "" if n == 3 else "no"} for n in range(6)])
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert json.loads(process.stdout)["fp"] == 1
    assert f'{answers}:4: field "answer": is empty' in process.stderr


def test_misplaced_answers_give_warnings(questions: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Is there a {number}?", "label": "yes"} for number in range(6)]
    write_jsonl(questions, rows)
    answer_rows = [{"question": row["text"], "answer": "Yes"} for row in rows]
    answer_rows[5]["question"] = "Is it there, the fifth?"
    answers = write_jsonl(tmp_path / "a.jsonl", answer_rows)
    assert run_process("score", "pope", "--questions", questions, "--answers", answers).stderr == ""
    write_jsonl(answers, [answer_rows[1], answer_rows[0], *answer_rows[2:]])
    process = run_process("score", "pope", "--questions", questions, "--answers", answers)
    assert 'a.jsonl:1: field "question": is ' in process.stderr
    assert process.stderr.count("warning") == 2


def test_utf_16_is_named_in_the_error(questions: Path, tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        answers = tmp_path / f"{encoding}.jsonl"
        answers.write_text('{"answer": "Yes"}\n', encoding=encoding)
        process = run_process("score", "pope", "--questions", questions, "--answers", answers)
        assert process.stderr == f"error: {answers}: is UTF-16 or UTF-32, not UTF-8\n"


def test_compare_prints_all_parsers(questions: Path, tmp_path: Path) -> None:
    answers = write_jsonl(tmp_path / "answers.jsonl", [{"answer": "Yes." if n else "yes"} for n in range(6)])
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--compare", "--json")
    output = json.loads(process.stdout)
    assert list(output["parsers"]) == list(PARSERS)
    assert output["disagreement"] == 5 / 6
    table = run_process("score", "pope", "--questions", questions, "--answers", answers, "--compare")
    assert "disagree on 83.3% of the answers" in table.stdout
    assert table.stdout.splitlines()[0].split()[-4:] == ["all", "yes", "all", "no"]


ANSWER = '{"answer": "yes"}\n'
INVALID_ANSWERS = {
    "too few": (ANSWER * 5, ":5: is the last of 5 answers, but"),
    "too many": (ANSWER * 7, ":7: is the last of 7 answers, but"),
    "not JSON": (ANSWER * 2 + "yes\n" + ANSWER * 3, ":3: is not JSON"),
    "no object": (ANSWER * 2 + '"yes"\n' + ANSWER * 3, ":3: must be a JSON object, not a string"),
    "an empty line": (ANSWER * 2 + "\n" + ANSWER * 4, ":3: the line is empty"),
    "no answer": (ANSWER * 5 + '{"reply": "yes"}\n', ':6: field "answer": is missing'),
    "null": (ANSWER * 5 + '{"answer": null}\n', ':6: field "answer": must be a string, not null'),
    "a list": (ANSWER * 5 + '{"answer": ["yes"]}\n', ':6: field "answer": must be a string, not a list'),
    "another question": (
        '{"answer": "yes", "question_id": 2}\n' + ANSWER * 5,
        ':1: field "question_id": is 2, but the question at this position has 1',
    ),
    "nothing": ("", ": has no objects"),
    "not UTF-8": ('{"answer": "\udcff"}\n' + ANSWER * 5, ":1: is not UTF-8"),
}


@pytest.mark.parametrize("case", INVALID_ANSWERS)
def test_invalid_answers_are_refused_with_file_line_and_field(questions: Path, tmp_path: Path, case: str) -> None:
    content, message = INVALID_ANSWERS[case]
    answers = tmp_path / "answers.jsonl"
    answers.write_text(content, encoding="utf-8", errors="surrogateescape")
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert process.returncode == 1
    assert process.stdout == ""
    assert f"{answers}{message}" in process.stderr
    assert "Traceback" not in process.stderr


def test_invalid_labels_are_refused(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [{"label": "yes"}, {"question_id": 2}])
    answers = write_jsonl(tmp_path / "a.jsonl", [{"answer": "yes"}] * 2)
    process = run_process("score", "pope", "--questions", questions, "--answers", answers)
    assert f'{questions}:2: field "label": is missing' in process.stderr
    questions = write_jsonl(tmp_path / "q.jsonl", [{"label": "yes"}, {"label": "maybe"}])
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--parser", "lmms-eval")
    assert f"""{questions}:2: field "label": is 'maybe', and lmms-eval accepts only yes or no""" in process.stderr
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert json.loads(process.stdout)["tp"] == 2
    assert "is 'maybe', not yes or no" in process.stderr


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    process = run_process("score", "pope", "--questions", tmp_path / "none.json", "--answers", tmp_path / "none.json")
    assert (process.returncode, process.stderr) == (1, f"error: {tmp_path / 'none.json'}: No such file or directory\n")


def test_further_warnings_are_counted(questions: Path, tmp_path: Path) -> None:
    answers = write_jsonl(tmp_path / "answers.jsonl", [{"answer": ""}] * 6)
    process = run_process("score", "pope", "--questions", questions, "--answers", answers, "--json")
    assert process.stderr.endswith("warning: and 1 more\n")
    assert process.stderr.count("is empty") == 5
