"""HallusionBench without a judge."""

import json
from pathlib import Path

import pytest

from eval.errors import InputError
from eval.hallusionbench import rows
from tests.eval.command import command


def row(category: str, figure: int, question: int, truth: int, said: object, **more: object) -> dict[str, object]:
    place = {"set_id": "0", "figure_id": str(figure), "question_id": str(question), "visual_input": "1"}
    return {
        "category": category,
        "subcategory": "chart",
        **place,
        "gt_answer": str(truth),
        "model_prediction": said,
        **more,
    }


ROWS = [
    row("VS", 0, 0, 1, "I cannot say."),  # unclear, but without the picture that is right
    row("VS", 1, 0, 1, "Yes."),
    row("VS", 1, 1, 0, "It is unclear"),
    row("VD", 0, 0, 1, "Yes, it is."),
    row("VD", 1, 0, 0, "Yes"),
    row("VD", 0, 1, 0, "No, not at all"),
]


def test_the_numbers(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(ROWS))
    done = command("score", "hallusionbench", "--results", file, "--json")
    found = json.loads(done.stdout)
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
    assert "aAcc" in command("score", "hallusionbench", "--results", file).stdout


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("XX", 0, 0, 1, "Yes"), "field \"[6].category\": is 'XX', not VD or VS"),
        (row("VD", 2, 0, 2, "Yes"), "field \"[6].gt_answer\": is '2', not 0 or 1"),
        (row("VD", 2, 0, 1, None), 'field "[6].model_prediction": must be a text, not null'),
        (ROWS[0], 'field "[6].question_id": asks the same question on the same figure again'),
    ],
)
def test_bad_rows(tmp_path: Path, bad: dict[str, object], message: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps([*ROWS, bad]))
    with pytest.raises(InputError) as refused:
        rows(file)
    assert str(refused.value) == f"{file}: {message}"
