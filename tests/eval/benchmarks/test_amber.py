"""AMBER on official files, with hand-computed numbers. The 0.001 in every count changes the first decimal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.benchmarks.amber import discriminative, generative
from eval.benchmarks.amber.answers import AmberAnswer, read_answers
from eval.benchmarks.amber.generative import AmberVocabulary
from eval.core.jsonl import JsonRecord
from eval.errors import EvaluationError, InputError
from tests.eval.cli_driver import run_process

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["cat", "ball"]},
    {"id": 2, "type": "generative", "truth": ["sea"], "hallu": []},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 6, "type": "relation", "truth": "no"},
    {"id": 7, "type": "discriminative-relation", "truth": "yes"},
]
RELATION = {"dog": ["puppy", "pet"], "grass": ["lawn"], "cat": ["kitten"], "ball": [], "sea": ["ocean"], "car": []}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    (tmp_path / "relation.json").write_text(json.dumps(RELATION))
    (tmp_path / "safe_words.txt").write_text("picture\nimage\n")
    return tmp_path


def write_answers(folder: Path, responses: Sequence[object]) -> Path:
    file = folder / "write_answers.json"
    file.write_text(json.dumps(responses))
    return file


def load_answers_of(folder: Path, responses: dict[int, str]) -> list[AmberAnswer]:
    file = write_answers(folder, [{"id": number, "response": text} for number, text in responses.items()])
    return read_answers([file], folder / "annotations.json")


def score_captions(folder: Path, responses: dict[int, str], similar: generative.SimilarityTest) -> dict[str, float]:
    vocabulary = AmberVocabulary.load(folder / "relation.json", folder / "safe_words.txt")
    return generative.score_captions(load_answers_of(folder, responses), vocabulary, str.split, similar)


def test_caption_scores_equal_their_definitions(files: Path) -> None:
    """Puppy, lawn and dog are correct, kitten is a likely hallucination, car is wrong, rain is unknown."""
    found = score_captions(files, {1: "puppy kitten car rain lawn dog", 2: "ocean"}, lambda first, second: False)
    # 6 nouns of the vocabulary, 2 wrong. 3 objects, all covered. 2 likely hallucinations, 1 present. 1 of 2 clean.
    assert found == {"chair": 33.3, "cover": 100.0, "hal": 50.0, "cog": 50.0, "n": 2}


def test_similar_words_match_objects_and_likely_hallucinations(files: Path) -> None:
    found = score_captions(
        files, {1: "car ball"}, lambda first, second: (first, second) in {("car", "cat"), ("car", "grass")}
    )
    assert found == {"chair": 50.0, "cover": 50.0, "hal": 100.0, "cog": 100.0, "n": 1}


def test_question_scores_equal_their_definitions(files: Path) -> None:
    found = discriminative.score_questions(load_answers_of(files, {3: "No", 4: "Yes", 5: "no", 6: "No", 7: "No"}))
    assert list(found) == ["all", "existence", "attribute", "state", "number", "relation"]
    assert found["all"] == {"accuracy": 60.0, "precision": 66.6, "recall": 66.6, "f1": 66.6, "n": 5, "unparsed": 1}
    assert found["existence"]["f1"] == 99.9
    assert found["number"] == {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 1, "unparsed": 1}
    assert found["relation"]["precision"] == 50.0


def test_all_no_beats_models_on_the_released_labels() -> None:
    """The released annotations have 4789 questions with the label yes and 9427 with the label no."""
    labels = ["yes"] * 4789 + ["no"] * 9427
    answers = [
        AmberAnswer("No", "discriminative-relation", JsonRecord({"truth": label}, Path("annotations.json")))
        for label in labels
    ]
    found = {answer: discriminative.score_questions(answers, answer)["all"] for answer in ("Yes", "No")}
    assert {name: found["No"][name] for name in ("accuracy", "precision", "recall", "f1")} == {
        "accuracy": 66.3, "precision": 66.3, "recall": 100.0, "f1": 79.7,
    }  # fmt: skip
    assert (found["Yes"]["accuracy"], found["Yes"]["f1"]) == (33.7, 0.0)


def test_constant_answers_stand_beside_every_dimension(files: Path) -> None:
    responses = write_answers(files, [{"id": 3, "response": "Yes"}, {"id": 4, "response": "Yes"}])
    command = ("score", "amber", "--answers", responses, "--annotations", files / "annotations.json")
    output = json.loads(run_process(*command, "--json").stdout)
    constants = output.pop("constant_answers")
    assert [list(each) for each in constants.values()] == [list(output)] * 2
    assert (output["existence"]["accuracy"], constants["all no"]["existence"]["accuracy"]) == (0.0, 99.9)
    headers = [line.split() for line in run_process(*command).stdout.splitlines() if "all yes" in line]
    assert [header[0] for header in headers] == list(output)


def test_score_amber_prints_json_and_requires_the_word_files(files: Path) -> None:
    responses = write_answers(files, [{"id": 3, "response": "No"}, {"id": 4, "response": "yes"}])
    process = run_process(
        "score", "amber", "--answers", responses, "--annotations", files / "annotations.json", "--json"
    )
    assert json.loads(process.stdout)["all"]["unparsed"] == 1
    responses = write_answers(files, [{"id": 1, "response": "A dog"}])
    process = run_process("score", "amber", "--answers", responses, "--annotations", files / "annotations.json")
    assert "need --relation and --safe-words" in process.stderr


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.benchmarks.nltk_data.is_installed", lambda package: False)
    with pytest.raises(EvaluationError, match=r"python -m nltk\.downloader punkt_tab averaged_perceptron_tagger_eng"):
        generative.build_noun_extractor()
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(EvaluationError, match="en_core_web_lg"):
        generative.build_similarity_test()


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ({"id": 8, "response": "Yes"}, 'field "[0].id": 8 is not an integer from 1 to 7'),
        ({"id": "3", "response": "Yes"}, """field "[0].id": '3' is not an integer from 1 to 7"""),
        ({"id": 3}, 'field "[0].response": is missing'),
        ({"id": 3, "response": None}, 'field "[0].response": must be a string, not null'),
    ],
)
def test_invalid_answers_are_refused(files: Path, responses: dict[str, object], message: str) -> None:
    file = write_answers(files, [responses])
    with pytest.raises(InputError) as refused:
        read_answers([file], files / "annotations.json")
    assert str(refused.value) == f"{file}: {message}"


def test_a_repeated_id_is_refused(files: Path) -> None:
    file = write_answers(files, [{"id": 3, "response": "No"}] * 2)
    with pytest.raises(InputError, match="3 is repeated"):
        read_answers([file], files / "annotations.json")
