"""HallusionBench without a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks.hallusionbench.score import compute_scores, read_answers
from eval.errors import InputError
from tests.eval.cli_driver import run_process


def make_row(
    category: str, figure: int, question: int, truth: int, prediction: object, visual_input: int
) -> dict[str, object]:
    return {
        "category": category,
        "subcategory": "chart",
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": str(question),
        "visual_input": str(visual_input),
        "gt_answer": str(truth),
        "model_prediction": prediction,
    }


ROWS = [
    make_row("VS", 0, 0, 1, "I cannot say.", 0),  # unclear, which is correct without the image
    make_row("VS", 1, 0, 1, "Yes.", 2),
    make_row("VS", 1, 1, 0, "It is unclear", 2),
    make_row("VD", 0, 0, 1, "Yes, it is.", 1),
    make_row("VD", 1, 0, 0, "Yes", 2),
    make_row("VD", 0, 1, 0, "No, not at all", 1),
]


def test_scores_equal_their_definitions(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(ROWS))
    process = run_process("score", "hallusionbench", "--results", file, "--json")
    found = json.loads(process.stdout)
    assert found["all"] == {
        "aAcc": 4 / 6,
        "fAcc": 1 / 3,
        "qAcc": 2 / 4,
        "easy": 1,
        "hard": 1 / 3,
        "n": 6,
        "unparsed": 2,
    }
    assert found["VS"] == {"aAcc": 2 / 3, "fAcc": 0, "qAcc": 1 / 2, "easy": 1, "hard": 1 / 2, "n": 3, "unparsed": 2}
    assert found["VD"]["fAcc"] == 1 / 2
    assert "aAcc" in run_process("score", "hallusionbench", "--results", file).stdout


def test_constant_answers_stand_beside_the_scores(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(ROWS))
    constants = json.loads(run_process("score", "hallusionbench", "--results", file, "--json").stdout)[
        "constant_answers"
    ]
    assert constants["all yes"]["all"] == {
        "aAcc": 3 / 6,
        "fAcc": 0,
        "qAcc": 1 / 4,  # the question that VS asks without an image and about figure 1
        "easy": 2 / 3,
        "hard": 1 / 3,
        "n": 6,
        "unparsed": 0,
    }
    assert constants["all no"]["VD"]["aAcc"] == 2 / 3
    assert "all no" in run_process("score", "hallusionbench", "--results", file).stdout


def test_easy_and_hard_are_split_by_visual_input(tmp_path: Path) -> None:
    """A visual supplement may have a figure above 0 that is not edited. Its questions are easy.

    The wrong answer about such a figure fails its question among the easy ones. A split by figures gives 4 of 4
    easy and 2 of 4 hard questions.
    """
    rows = [
        make_row("VS", 0, 0, 1, "I do not know.", 0),  # unclear without the image
        make_row("VS", 1, 0, 1, "No.", 1),
        make_row("VS", 2, 0, 0, "No.", 2),
        make_row("VS", 0, 1, 0, "No.", 0),
        make_row("VS", 1, 1, 0, "No.", 1),
        make_row("VD", 0, 0, 1, "Yes.", 1),
        make_row("VD", 1, 0, 0, "No.", 2),
        make_row("VD", 0, 1, 0, "No.", 1),
        make_row("VD", 1, 1, 0, "It shows both.", 2),  # unclear
    ]
    file = tmp_path / "result.json"
    file.write_text(json.dumps(rows))
    found = compute_scores(read_answers(file))
    assert (found["aAcc"], found["fAcc"], found["qAcc"]) == (7 / 9, 2 / 4, 2 / 4)
    assert (found["easy"], found["hard"]) == (3 / 4, 2 / 3)


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        (make_row("XX", 0, 0, 1, "Yes", 1), "field \"[6].category\": is 'XX', not VD or VS"),
        (make_row("VD", 2, 0, 2, "Yes", 1), "field \"[6].gt_answer\": is '2', not 0 or 1"),
        (make_row("VD", 2, 0, 1, None, 2), 'field "[6].model_prediction": must be a string, not null'),
        (make_row("VD", 2, 0, 1, "Yes", 3), "field \"[6].visual_input\": is '3', not 0, 1 or 2"),
        (ROWS[0], 'field "[6].question_id": repeats a question about the same figure'),
    ],
)
def test_invalid_rows_are_refused(tmp_path: Path, invalid: dict[str, object], message: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps([*ROWS, invalid]))
    with pytest.raises(InputError) as refused:
        read_answers(file)
    assert str(refused.value) == f"{file}: {message}"
