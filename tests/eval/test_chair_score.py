"""CHAIR's numbers, their breakdown, and the command that prints them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.chair.breakdown import by_category, by_position
from eval.chair.captions import judged
from eval.chair.lemma import installed
from eval.chair.score import CaptionScore, score
from eval.errors import EvaluationError, InputError
from tests.eval.command import command, lines

KEYS = ["chair_s", "chair_i", "recall", "len", "n", "hallucinated_captions", "hallucinated_mentions", "mentions"]

CATEGORIES = [
    {"id": 1, "name": "person"},
    {"id": 6, "name": "bus"},
    {"id": 18, "name": "dog"},
    {"id": 47, "name": "cup"},
]
INSTANCES: dict[str, Any] = {
    "images": [{"id": number} for number in (1, 2, 3)],
    "categories": CATEGORIES,
    "annotations": [
        {"image_id": 1, "category_id": 18},
        {"image_id": 1, "category_id": 18},
        {"image_id": 2, "category_id": 6},
    ],
}
REFERENCES: dict[str, Any] = {
    "images": [{"id": number} for number in (1, 2, 3)],
    "annotations": [
        {"image_id": 1, "caption": "A man walks two dogs."},
        {"image_id": 1, "caption": "Somebody with a puppy next to a bus"},
        {"image_id": 2, "caption": "A bus at a stop sign."},
    ],
}
CAPTIONS = [
    {"image_id": 1, "caption": "A woman and a dog beside a bus, a bus and a cat."},
    {"image_id": 2, "caption": "Two buses and a bus."},
    {"image_id": 3, "caption": "Nothing at all"},
    {"image_id": 2, "caption": "A cup, a cup, a stop sign"},
]
TABLE = "person, man, woman\nbus\ndog, puppy\ncat\ncup\nstop sign\n"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "instances_val2014.json").write_text(json.dumps(INSTANCES))
    (folder / "captions_val2014.json").write_text(json.dumps(REFERENCES))
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "synonyms.txt").write_text(TABLE)
    return tmp_path / "synonyms.txt"


@pytest.fixture
def scored(tmp_path: Path, annotations: Path, table: Path) -> Callable[..., list[CaptionScore]]:
    captions = lines(tmp_path / "captions.jsonl", CAPTIONS)
    return lambda variant="original": judged(captions, annotations, variant, table)


def test_the_numbers(scored: Callable[..., list[CaptionScore]]) -> None:
    """In the original a bus counts neither in captions nor in reference captions, while buses do."""
    found = score(scored())
    # 1: woman, dog, cat of {dog, person}; 2: bus of {bus, stop sign}; 3: nothing of {}; 2: cup, cup, stop sign.
    assert (found.mentions, found.hallucinated_mentions, found.hallucinated_captions, found.n) == (7, 3, 2, 4)
    assert found.chair_s == 2 / 4
    assert found.chair_i == 3 / 7
    assert found.recall == (2 + 1 + 0 + 1) / (2 + 2 + 0 + 2)
    assert found.length == (15 + 6 + 3 + 8) / 4


def test_the_fixed_variant_sees_the_bus_in_captions_and_in_references(
    scored: Callable[..., list[CaptionScore]],
) -> None:
    found = scored("fixed")
    assert [mention.node for mention in found[0].hallucinated] == ["cat"]
    assert found[0].truth == {"person", "dog", "bus"}
    assert len(found[1].reading.mentions) == 2


def test_a_division_without_a_value_is_null_and_says_why(tmp_path: Path, annotations: Path) -> None:
    captions = lines(tmp_path / "c.jsonl", [{"image_id": 3, "caption": "nothing"}])
    found = score(judged(captions, annotations)).as_json()
    assert (found["chair_s"], found["chair_i"], found["recall"]) == (0, None, None)
    assert found["notes"] == {"chair_i": "no caption mentions an object", "recall": "no picture holds an object"}


def test_breakdown_by_category(scored: Callable[..., list[CaptionScore]]) -> None:
    rows = {row.node: row for row in by_category(scored())}
    assert list(rows) == ["cup", "cat", "bus", "dog", "person", "stop sign"]
    assert (rows["cup"].mentions, rows["cup"].rate, rows["cup"].recall) == (2, 1, None)
    assert rows["cup"].company == (("bus", 1), ("stop sign", 1))
    assert (rows["bus"].pictures, rows["bus"].recalled, rows["bus"].recall) == (2, 1, 0.5)
    assert rows["cat"].company == (("dog", 1), ("person", 1))


def test_breakdown_by_position(scored: Callable[..., list[CaptionScore]]) -> None:
    halves = by_position(scored(), 2)
    assert [(half.start, half.end, half.mentions, half.hallucinated) for half in halves] == [
        (0, 0.5, 5, 2),
        (0.5, 1, 2, 1),
    ]
    assert sum(part.mentions for part in by_position(scored(), 7)) == 7


def test_the_command(tmp_path: Path, annotations: Path, table: Path) -> None:
    captions = lines(tmp_path / "c.jsonl", CAPTIONS)
    done = command(
        *("score", "chair", "--captions", captions, "--annotations", annotations, "--synonyms", table),
        *("--variant", "original", "--json", "--per-caption", tmp_path / "each.jsonl"),
    )
    assert done.returncode == 0
    assert done.stderr == f"warning: {captions}: 1 captions are of a picture that had one; each counts\n"
    printed = json.loads(done.stdout)
    assert list(printed) == [*KEYS, "fixed"]
    assert (printed["chair_i"], printed["len"]) == (3 / 7, 8.0)
    assert (list(printed["fixed"]), printed["fixed"]["mentions"]) == (KEYS, 10)
    each = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert each[0] == {
        "image_id": 1,
        "words": ["woman", "dog", "cat"],
        "nodes": ["person", "dog", "cat"],
        "hallucinated": [["cat", "cat"]],
        "gt_nodes": ["dog", "person"],
    }
    assert each[2] == {"image_id": 3, "words": [], "nodes": [], "hallucinated": [], "gt_nodes": []}


def test_a_place_that_cannot_be_written(tmp_path: Path, annotations: Path, table: Path) -> None:
    captions = lines(tmp_path / "c.jsonl", CAPTIONS[:1])
    line = ("score", "chair", "--captions", captions, "--annotations", annotations, "--synonyms", table)
    done = command(*line, "--per-caption", tmp_path / "none" / "each.jsonl")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/none/each.jsonl: No such file or directory\n")


def test_the_command_shows_fixed_beside_and_breaks_down(tmp_path: Path, annotations: Path, table: Path) -> None:
    captions = lines(tmp_path / "c.jsonl", CAPTIONS)
    line = ("score", "chair", "--captions", captions, "--annotations", annotations, "--synonyms", table, "--breakdown")
    found = json.loads(command(*line, "--json").stdout)
    assert list(found) == [*KEYS, "fixed", "by_category", "by_position"]
    assert found["fixed"]["mentions"] == 10
    assert found["by_category"][0]["node"] == "cup"
    assert found["by_category"][0]["company"] == {"bus": 1, "stop sign": 1}
    assert sum(part["hallucinated"] for part in found["by_position"]) == found["hallucinated_mentions"]
    shown = command(*line).stdout
    assert shown.split()[:2] == ["original", "fixed"]
    assert ["cup", "2", "2", "bus,", "stop", "sign"] in [row.split() for row in shown.splitlines()]
    assert "0% to 10%" in shown


def test_our_own_table_and_an_array_of_captions(tmp_path: Path, annotations: Path) -> None:
    captions = tmp_path / "c.json"
    captions.write_text(json.dumps(CAPTIONS))
    done = command("score", "chair", "--captions", captions, "--annotations", annotations, "--json")
    assert json.loads(done.stdout)["mentions"] == 7
    assert "chair_s" in command("score", "chair", "--captions", captions, "--annotations", annotations).stdout


def test_several_files_of_annotations_are_one(tmp_path: Path, annotations: Path) -> None:
    train = {**INSTANCES, "images": [{"id": 9}], "annotations": [{"image_id": 9, "category_id": 47}]}
    (annotations / "instances_train2014.json").write_text(json.dumps(train))
    captions = lines(tmp_path / "c.jsonl", [{"image_id": 9, "caption": "a cup"}, {"image_id": 1, "caption": "a dog"}])
    assert score(judged(captions, annotations)).chair_s == 0


def test_empty_captions_are_scored_and_pointed_out(tmp_path: Path, annotations: Path) -> None:
    captions = lines(tmp_path / "c.jsonl", [{"image_id": 1, "caption": ""}])
    done = command("score", "chair", "--captions", captions, "--annotations", annotations, "--json")
    assert json.loads(done.stdout)["n"] == 1
    assert f"warning: {captions}: 1 captions are empty" in done.stderr


BAD_CAPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "a string for a number": (
        {"image_id": "1", "caption": "a"},
        """:2: field "image_id": '1' is no image of the annotations in """,
    ),
    "unknown": ({"image_id": 7, "caption": "a"}, ':2: field "image_id": 7 is no image of the annotations in '),
    "no id": ({"image": 1, "caption": "a"}, ':2: field "image_id": is missing'),
    "a float": ({"image_id": 1.0, "caption": "a"}, ':2: field "image_id": must be a whole number or a text'),
    "a truth value": ({"image_id": True, "caption": "a"}, ':2: field "image_id": must be a whole number or a text'),
    "no caption": ({"image_id": 1}, ':2: field "caption": is missing'),
    "null": ({"image_id": 1, "caption": None}, ':2: field "caption": must be a text, not null'),
}


@pytest.mark.parametrize("what", BAD_CAPTIONS)
def test_bad_captions(tmp_path: Path, annotations: Path, what: str) -> None:
    row, message = BAD_CAPTIONS[what]
    captions = lines(tmp_path / "c.jsonl", [{"image_id": 1, "caption": "a dog"}, row])
    with pytest.raises(InputError) as refused:
        judged(captions, annotations)
    assert f"{captions}{message}" in str(refused.value)
    if what == "a string for a number":
        assert str(refused.value).endswith("which has this as a number")


def test_a_number_for_a_string(tmp_path: Path, annotations: Path) -> None:
    texts = {**INSTANCES, "images": [{"id": "1"}], "annotations": []}
    (annotations / "instances_val2014.json").write_text(json.dumps(texts))
    (annotations / "captions_val2014.json").write_text(json.dumps({"annotations": []}))
    captions = lines(tmp_path / "c.jsonl", [{"image_id": 1, "caption": "a dog"}])
    with pytest.raises(InputError, match="which has this as a text"):
        judged(captions, annotations)


BAD_ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no annotations": ({"categories": CATEGORIES}, 'field "annotations": is missing'),
    "no list": ({**INSTANCES, "annotations": {}}, 'field "annotations": must be a list, not an object'),
    "no image": (
        {**INSTANCES, "annotations": [{"category_id": 1}]},
        'field "annotations[0].image_id": is missing',
    ),
    "unknown category": (
        {**INSTANCES, "annotations": [{"image_id": 1, "category_id": 99}]},
        'field "annotations[0].category_id": 99 is none of the categories',
    ),
    "a list of categories": (
        {**INSTANCES, "annotations": [{"image_id": 1, "category_id": [18]}]},
        'field "annotations[0].category_id": must be a whole number or a text, not a list',
    ),
    "unnamed category": (
        {**INSTANCES, "categories": [{"id": 1, "name": "unicorn"}]},
        """field "categories[0].name": 'unicorn' is not in the table of synonyms""",
    ),
}


@pytest.mark.parametrize("what", BAD_ANNOTATIONS)
def test_bad_annotations(tmp_path: Path, annotations: Path, what: str) -> None:
    content, message = BAD_ANNOTATIONS[what]
    file = annotations / "instances_val2014.json"
    file.write_text(json.dumps(content))
    captions = lines(tmp_path / "c.jsonl", [{"image_id": 1, "caption": "a dog"}])
    with pytest.raises(InputError) as refused:
        judged(captions, annotations)
    assert str(refused.value) == f"{file}: {message}"


def test_both_kinds_of_annotations_are_needed(tmp_path: Path, annotations: Path) -> None:
    captions = lines(tmp_path / "c.jsonl", CAPTIONS)
    (annotations / "captions_val2014.json").unlink()
    done = command("score", "chair", "--captions", captions, "--annotations", annotations)
    assert (done.returncode, done.stderr) == (1, f"error: {annotations}: holds no captions_*.json\n")
    done = command("score", "chair", "--captions", captions, "--annotations", tmp_path / "none")
    assert done.stderr == f"error: {tmp_path / 'none'}: is no folder\n"


@pytest.mark.skipif(installed("corpora/wordnet"), reason="the data is installed")
def test_the_lemma_variant_names_the_command_that_installs_its_data(scored: Callable[..., list[CaptionScore]]) -> None:
    with pytest.raises(EvaluationError, match=r"python -m nltk\.downloader wordnet"):
        scored("lemma")


def test_the_lemma_variant_takes_lemmas_by_part_of_speech(
    scored: Callable[..., list[CaptionScore]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for nltk's data: a tagger that knows nouns and verbs, and lemmas that show what they got."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    def lemmatize(self: object, word: str, pos: str = "n") -> str:
        return {("buses", "n"): "bus", ("walks", "v"): "walk"}.get((word, pos), word)

    monkeypatch.setattr("eval.chair.lemma.installed", lambda path: True)
    monkeypatch.setattr(nltk, "pos_tag", lambda words: [(word, "VBZ" if word == "walks" else "NNS") for word in words])
    monkeypatch.setattr(WordNetLemmatizer, "lemmatize", lemmatize)
    found = scored("lemma")
    assert [mention.word for mention in found[1].reading.mentions] == ["bus", "bus"]
    assert found[0].truth == {"dog", "person", "bus"}
