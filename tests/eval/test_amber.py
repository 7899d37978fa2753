"""AMBER from its official files, worked by hand; 0.001 in every count of the official script moves the first digit."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.amber import discriminative, generative
from eval.amber.answers import Item, items
from eval.amber.generative import Words
from eval.errors import EvaluationError, InputError
from tests.eval.command import command

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


def answers(folder: Path, said: Sequence[object]) -> Path:
    file = folder / "answers.json"
    file.write_text(json.dumps(said))
    return file


def replies(folder: Path, said: dict[int, str]) -> list[Item]:
    file = answers(folder, [{"id": number, "response": text} for number, text in said.items()])
    return items(file, folder / "annotations.json")


def captions(folder: Path, said: dict[int, str], similar: generative.Similar) -> dict[str, float]:
    words = Words.load(folder / "relation.json", folder / "safe_words.txt")
    return generative.score(replies(folder, said), words, str.split, similar)


def test_captions(files: Path) -> None:
    """Puppy, lawn and dog are there, a kitten is an expected invention, a car is wrong, rain is in no vocabulary."""
    found = captions(files, {1: "puppy kitten car rain lawn dog", 2: "ocean"}, lambda one, other: False)
    # Nouns of the vocabulary 6 with 2 wrong; truth 3, all covered; expected inventions 2, one came; 1 of 2 clean.
    assert found == {"chair": 33.3, "cover": 100.0, "hal": 50.0, "cog": 50.0, "n": 2}


def test_similar_words_count_as_there_and_as_expected_inventions(files: Path) -> None:
    found = captions(files, {1: "car ball"}, lambda one, other: (one, other) in {("car", "cat"), ("car", "grass")})
    assert found == {"chair": 50.0, "cover": 50.0, "hal": 100.0, "cog": 100.0, "n": 1}


def test_questions(files: Path) -> None:
    found = discriminative.score(replies(files, {3: "No", 4: "Yes", 5: "no", 6: "No", 7: "No"}))
    assert list(found) == ["all", "existence", "attribute", "state", "number", "relation"]
    assert found["all"] == {"accuracy": 60.0, "precision": 66.6, "recall": 66.6, "f1": 66.6, "n": 5, "unparsed": 1}
    assert found["existence"]["f1"] == 99.9
    assert found["number"] == {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 1, "unparsed": 1}
    assert found["relation"]["precision"] == 50.0


def test_the_command(files: Path) -> None:
    said = answers(files, [{"id": 3, "response": "No"}, {"id": 4, "response": "yes"}])
    done = command("score", "amber", "--answers", said, "--annotations", files / "annotations.json", "--json")
    assert json.loads(done.stdout)["all"]["unparsed"] == 1
    said = answers(files, [{"id": 1, "response": "A dog"}])
    done = command("score", "amber", "--answers", said, "--annotations", files / "annotations.json")
    assert "need --relation and --safe-words" in done.stderr


def test_what_captions_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.chair.lemma.installed", lambda path: False)
    with pytest.raises(EvaluationError, match=r"python -m nltk\.downloader punkt_tab averaged_perceptron_tagger_eng"):
        generative.nltk_nouns()
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(EvaluationError, match="en_core_web_lg"):
        generative.spacy_similar()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"id": 8, "response": "Yes"}, 'field "[0].id": 8 is no number from 1 to 7'),
        ({"id": "3", "response": "Yes"}, """field "[0].id": '3' is no number from 1 to 7"""),
        ({"id": 3}, 'field "[0].response": is missing'),
        ({"id": 3, "response": None}, 'field "[0].response": must be a text, not null'),
    ],
)
def test_bad_answers(files: Path, said: dict[str, object], message: str) -> None:
    file = answers(files, [said])
    with pytest.raises(InputError) as refused:
        items(file, files / "annotations.json")
    assert str(refused.value) == f"{file}: {message}"


def test_an_answer_that_comes_twice(files: Path) -> None:
    file = answers(files, [{"id": 3, "response": "No"}] * 2)
    with pytest.raises(InputError, match="3 comes twice"):
        items(file, files / "annotations.json")
