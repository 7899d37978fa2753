"""Answers to POPE's questions under the labels of other authors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.benchmarks.pope.parsers import PARSERS
from eval.benchmarks.pope.relabelling import RelabelledAnswers, compute_balanced_rates, relabel_answers
from eval.benchmarks.pope.score import compute_score, read_labelled_answers
from eval.benchmarks.pope.task import PopeTask
from eval.core.task import TaskOptions
from eval.errors import InputError
from tests.eval.cli_driver import run_process, write_jsonl
from tests.eval.scene_data import write_scenes

# Image, object, label of POPE and the answer. The order gives the ids.
ASKED = [
    ("a.jpg", "dog", "yes", "Yes"),
    ("a.jpg", "cup", "no", "Yes"),
    ("a.jpg", "chair", "yes", "No"),
    ("a.jpg", "car", "no", "No"),
    ("b.jpg", "cat", "yes", "Yes"),
    ("b.jpg", "bed", "no", "Yes"),
    ("b.jpg", "vase", "yes", "Yes"),
    ("b.jpg", "book", "no", "No"),
]
# New labels by id. The chair and the book are ambiguous.
NEW = {1: "yes", 2: "yes", 4: "no", 5: "yes", 6: "no", 7: "no"}
OFFICIAL = [PARSERS["official"]]

Relabel = Callable[..., RelabelledAnswers]


def make_question(number: int, label: str, *, id_shift: int = 0, text: str = "Is there a {} in the image?") -> object:
    image, name, _, _ = ASKED[number - 1]
    return {"question_id": number + id_shift, "image": image, "text": text.format(name), "label": label}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "coco_repope_random.json", [make_question(*each) for each in NEW.items()])


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "answers.jsonl", [{"answer": answer} for _, _, _, answer in ASKED])


@pytest.fixture
def relabel(tmp_path: Path, labels: Path, answers: Path) -> Relabel:
    def run(**changes: object) -> RelabelledAnswers:
        rows = [make_question(number, ASKED[number - 1][2], **changes) for number in range(1, 9)]  # type: ignore[arg-type]
        questions = write_jsonl(tmp_path / "coco_pope_random.json", rows)
        pairs = read_labelled_answers(questions, answers, OFFICIAL)
        assert compute_score(pairs.labels, pairs.answers).accuracy == 0.625
        return relabel_answers(questions, pairs, labels, OFFICIAL)

    return run


def test_answers_are_scored_with_the_new_labels(relabel: Relabel) -> None:
    found = relabel()
    score = compute_score(found.pairs.labels, found.pairs.answers)
    assert (score.tp, score.fp, score.tn, score.fn) == (3, 2, 1, 0)
    assert (score.accuracy, score.precision, score.recall) == (4 / 6, 3 / 5, 1)
    assert score.f1 == pytest.approx(0.75)
    assert score.yes_ratio == 5 / 6
    assert compute_balanced_rates(score) == {"specificity": 1 / 3, "balanced_accuracy": (1 + 1 / 3) / 2}
    flow = {"yes->yes": 2, "no->yes": 1, "yes->dropped": 1, "no->no": 2, "yes->no": 1, "no->dropped": 1}
    assert found.changes == flow
    assert found.as_json() == {"matched": 6, "dropped": 2, "unanswered": 0, "moved_ids": 0, "changes": flow}


def test_moved_ids_change_nothing_and_are_counted(relabel: Relabel) -> None:
    """A join by id gives an accuracy of 0.4: the ids of an old random file belong to other questions."""
    moved, found = relabel(id_shift=1), relabel()
    assert (moved.pairs, moved.changes) == (found.pairs, found.changes)
    assert (moved.moved_ids, found.moved_ids) == (5, 0)  # The ids 3, 8 and 9 are not in the file of labels.


@pytest.mark.parametrize("text", ["Is there an {} in the imange?", "Is a {} in the image?"])
def test_another_wording_of_the_questions_is_recognised(relabel: Relabel, text: str) -> None:
    assert relabel(text=text).pairs == relabel().pairs


def test_a_label_without_an_answer_needs_a_flag(tmp_path: Path, labels: Path) -> None:
    rows = [make_question(number, ASKED[number - 1][2]) for number in range(1, 6)]
    questions = write_jsonl(tmp_path / "q.json", rows)
    answers = write_jsonl(tmp_path / "a.jsonl", [{"answer": "Yes"}] * 5)
    pairs = read_labelled_answers(questions, answers, OFFICIAL)
    with pytest.raises(InputError, match=r"has 2 labels of questions that .* lacks \(b: bed; b: vase\)"):
        relabel_answers(questions, pairs, labels, OFFICIAL)
    found = relabel_answers(questions, pairs, labels, OFFICIAL, allow_missing=True)
    assert (len(found.pairs.labels), found.unanswered) == (4, 2)


def test_labels_of_other_questions_and_contradictions_are_refused(relabel: Relabel, labels: Path) -> None:
    write_jsonl(labels, [make_question(1, "yes"), make_question(1, "no", id_shift=9)])
    with pytest.raises(InputError, match="the same question has another label before"):
        relabel()
    write_jsonl(labels, [{"question_id": 1, "image": "c.jpg", "text": "Is there a dog in the image?", "label": "no"}])
    with pytest.raises(InputError, match="has no label for a question of"):
        relabel()


def test_the_command_prints_the_join(tmp_path: Path, labels: Path, answers: Path) -> None:
    rows = [make_question(number, ASKED[number - 1][2]) for number in range(1, 9)]
    questions = write_jsonl(tmp_path / "coco_pope_random.json", rows)
    command = ("score", "pope", "--questions", questions, "--answers", answers, "--labels", labels)
    output = json.loads(run_process(*command, "--json").stdout)
    assert (output["n"], output["accuracy"], output["balanced_accuracy"]) == (6, 4 / 6, 2 / 3)
    assert (output["labels"]["matched"], output["labels"]["dropped"]) == (6, 2)
    assert "matched 6, dropped 2, unanswered 0" in run_process(*command).stdout
    refused = run_process("score", "pope", "--questions", labels, "--answers", answers)
    assert refused.returncode == 1
    assert "is the last of 8 answers" in refused.stderr
    assert "--labels" in refused.stderr


def test_a_run_uses_the_files_of_repope_where_pope_is_missing(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data")
    assert PopeTask(data, TaskOptions()).title == "POPE"
    for split in ("random", "popular", "adversarial"):
        lines = (data / "pope" / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (data / f"coco_repope_{split}.json").write_text("".join(lines[1:]))
    assert len(PopeTask(data, TaskOptions()).load_questions()) == 180
    for file in (data / "pope").iterdir():
        file.unlink()
    task = PopeTask(data, TaskOptions())
    assert (task.title, len(task.load_questions())) == ("RePOPE", 177)
