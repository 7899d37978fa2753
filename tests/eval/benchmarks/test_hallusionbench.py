"""HallusionBench without a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks.hallusionbench import read_answers
from eval.errors import InputError
from tests.eval.cli_driver import run_process


def make_row(
    category: str, figure: int, question: int, truth: int, prediction: object, **more: object
) -> dict[str, object]:
    place = {"set_id": "0", "figure_id": str(figure), "question_id": str(question), "visual_input": "1"}
    return {
        "category": category,
        "subcategory": "chart",
        **place,
        "gt_answer": str(truth),
        "model_prediction": prediction,
        **more,
    }


ROWS = [
    make_row("VS", 0, 0, 1, "I cannot say."),  # unclear, which is correct without the image
    make_row("VS", 1, 0, 1, "Yes."),
    make_row("VS", 1, 1, 0, "It is unclear"),
    make_row("VD", 0, 0, 1, "Yes, it is."),
    make_row("VD", 1, 0, 0, "Yes"),
    make_row("VD", 0, 1, 0, "No, not at all"),
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


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        (make_row("XX", 0, 0, 1, "Yes"), "field \"[6].category\": is 'XX', not VD or VS"),
        (make_row("VD", 2, 0, 2, "Yes"), "field \"[6].gt_answer\": is '2', not 0 or 1"),
        (make_row("VD", 2, 0, 1, None), 'field "[6].model_prediction": must be a string, not null'),
        (ROWS[0], 'field "[6].question_id": repeats a question about the same figure'),
    ],
)
def test_invalid_rows_are_refused(tmp_path: Path, invalid: dict[str, object], message: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps([*ROWS, invalid]))
    with pytest.raises(InputError) as refused:
        read_answers(file)
    assert str(refused.value) == f"{file}: {message}"
