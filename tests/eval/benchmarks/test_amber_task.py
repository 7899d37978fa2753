"""The tasks `amber` and `amber-generative` on files in the official layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks.amber.task import AmberGenerativeTask, AmberTask
from eval.core.task import TaskOptions
from eval.errors import EvaluationError, InputError
from tests.eval.analysis.test_bias_control import list_logprobs
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedReply, ScriptedServer, prompt_of, start_server, strategy_of

ANNOTATIONS: list[dict[str, Any]] = [
    {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["cat", "ball"]},
    {"id": 2, "type": "generative", "truth": ["sea"], "hallu": []},
    {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 4, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 5, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 6, "type": "relation", "truth": "yes"},
    {"id": 7, "type": "relation", "truth": "no"},
]
RELATION = {"dog": ["puppy", "pet"], "grass": ["lawn"], "cat": ["kitten"], "ball": [], "sea": ["ocean"], "car": []}
QUERIES = [
    {
        "id": row["id"],
        "image": f"AMBER_{1 + row['id'] % 2}.jpg",
        "query": "Describe this image." if row["type"] == "generative" else f"Is it {row['id']}?",
    }
    for row in ANNOTATIONS
]
QUERY_FILE = "query/query_discriminative.json"
# The worked example: two of five answers are wrong, and "yes." is neither Yes nor No.
ANSWERS = {"Is it 3?": "Yes", "Is it 4?": "No", "Is it 5?": "Yes", "Is it 6?": "No", "Is it 7?": "yes."}
CAPTIONS = {1: "puppy kitten car rain lawn dog", 2: "ocean"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write a copy of the authors' repository, with images in its folder `image`."""
    files = tmp_path / "data"
    (files / "query").mkdir(parents=True)
    (files / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    (files / "relation.json").write_text(json.dumps(RELATION))
    (files / "safe_words.txt").write_text("picture\nimage\n")
    (files / "query" / "query_generative.json").write_text(json.dumps(QUERIES[:2]))
    (files / "query" / "query_discriminative.json").write_text(json.dumps(QUERIES[2:]))
    (tmp_path / "image").mkdir()
    for number in (1, 2):
        Image.new("RGB", (8, number)).save(tmp_path / "image" / f"AMBER_{number}.jpg")
    return tmp_path


@pytest.fixture
def split_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every word as a noun, so that no data of nltk are needed."""
    monkeypatch.setattr("eval.benchmarks.amber.generative.build_noun_extractor", lambda: str.split)


def answer_questions(request: dict[str, Any]) -> ScriptedReply:
    if strategy_of(request) != "plain":
        return ScriptedReply("No")
    text = ANSWERS[prompt_of(request)]
    return ScriptedReply(text, logprobs=list_logprobs(-1.0 if text == "No" else 1.0))


def test_run_has_ratios_and_the_official_numbers(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(answer_questions)) as server:
        result = invoke_run(server, data, out, "--strategies", "vhr", task="amber")
    assert result.exit_code == 0, output_of(result)
    results = read_results(out)
    scopes = {scope["scope"]: scope for scope in results["scopes"]}
    assert {name: scope["questions"] for name, scope in scopes.items()} == {
        "attribute": 2, "existence": 1, "relation": 2, "all questions": 5,
    }  # fmt: skip
    overall = scopes["all questions"]
    assert (overall["images"], overall["clusters"]) == (2, 2)
    rows = {row["strategy"]: row["metrics"] for key in ("rows", "constant_rows") for row in overall[key]}
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    plain = [rows["plain"][name]["value"] for name in names]
    assert plain == pytest.approx([2 / 5, 1 / 2, 1 / 3, 2 / 5, 2 / 5])
    assert [rows["all no"][name]["value"] for name in names] == pytest.approx([3 / 5, 3 / 5, 1, 3 / 4, 0])
    assert overall["rows"][1]["against_plain"]["accuracy"]["test"] == "exchange"
    [control] = [each for each in overall["bias"]["controls"] if each["threshold"] == "all"]
    assert set(control["metrics"]) == {"accuracy", "f1", "yes_ratio"}
    # Counts of the official script start at 0.001, and its F1 comes from rounded numbers.
    tables = {table["title"]: table for table in results["tables"]}
    official = {row["strategy"]: row["values"] for row in tables["Official numbers, all questions"]["rows"]}
    assert official["plain"] == pytest.approx([0.4, 0.5, 0.333, 0.4])
    assert official["all no"] == pytest.approx([0.6, 0.6, 1.0, 0.75])
    assert set(official) == {"plain", "vhr", "all yes", "all no"}
    assert tables["Official f1 by dimension"]["headers"] == ["existence", "attribute", "state", "number", "relation"]
    by_dimension = {row["strategy"]: row["values"] for row in tables["Official accuracy by dimension"]["rows"]}
    assert by_dimension["plain"] == pytest.approx([0, 0.999, 0.999, 0.999, 0])
    assert results["arms"][0]["notes"] == {"parser": "official", "unparsed": 1}
    assert invoke("verify", out).exit_code == 0


def test_score_of_exported_answers_equals_the_tables_of_the_run(data: Path, tmp_path: Path, split_words: None) -> None:
    with start_server(ScriptedServer(answer_questions)) as server:
        assert invoke_run(server, data, tmp_path / "yes-no", task="amber").exit_code == 0
    with start_server(ScriptedServer(lambda _: ScriptedReply(CAPTIONS[1]))) as server:
        options = ("--no-similarity", "--prompt", "Describe it.")
        result = invoke_run(server, data, tmp_path / "captions", *options, task="amber-generative")
    assert result.exit_code == 0, output_of(result)
    assert prompt_of(server.requests[0]) == "Describe it."
    for name in ("yes-no", "captions"):
        assert invoke("export", tmp_path / name, "--strategy", "plain", "--out", tmp_path / name).exit_code == 0
    rows = json.loads((tmp_path / "yes-no" / "answers.json").read_text())
    assert rows[0] == {"id": 3, "response": "Yes"}
    files = data / "data"
    result = invoke(
        "score", "amber", "--json", "--no-similarity",
        "--answers", tmp_path / "yes-no" / "answers.json", "--answers", tmp_path / "captions" / "answers.json",
        "--annotations", files / "annotations.json", "--relation", files / "relation.json",
        "--safe-words", files / "safe_words.txt",
    )  # fmt: skip
    assert result.exit_code == 0, output_of(result)
    scored = json.loads(result.output)
    [table] = read_results(tmp_path / "captions")["tables"]
    names = ("chair", "cover", "hal", "cog")
    assert table["rows"][0]["values"] == pytest.approx([scored["generative"][name] / 100 for name in names])
    tables = read_results(tmp_path / "yes-no")["tables"]
    names = ("accuracy", "precision", "recall", "f1")
    assert tables[0]["rows"][0]["values"] == pytest.approx([scored["all"][name] / 100 for name in names])
    assert scored["both"]["amber"] == pytest.approx((100 - scored["generative"]["chair"] + scored["all"]["f1"]) / 2)


def test_captions_are_counted_by_the_official_rules(data: Path, split_words: None) -> None:
    """Puppy, lawn and dog are in the image, kitten is a likely hallucination, car is wrong, rain is unknown."""
    task = AmberGenerativeTask(data, TaskOptions(similarity=False))
    questions = task.load_questions()
    assert [question.id for question in questions] == ["1", "2"]
    assert {question.prompt for question in questions} == {"Describe this image."}
    scores = task.score_answers(questions, list(CAPTIONS.values()))
    assert dict(scores[0].counts) == {
        "n": 1, "bad": 1, "words": 6, "nouns": 5, "unsupported": 2, "present": 2, "covered": 2, "likely": 2,
        "confirmed": 1,
    }  # fmt: skip
    assert scores[1].counts["bad"] == 0
    [table] = task.build_tables(questions, {"plain": list(CAPTIONS.values())})
    assert table.rows[0].values == pytest.approx([0.333, 1.0, 0.5, 0.5])


def test_similar_words_count_unless_they_are_turned_off(
    data: Path, split_words: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "eval.benchmarks.amber.generative.build_similarity_test",
        lambda: lambda first, second: (first, second) == ("car", "dog"),
    )
    for similarity, unsupported in ((True, 0), (False, 1)):
        task = AmberGenerativeTask(data, TaskOptions(similarity=similarity))
        [score] = task.score_answers(task.load_questions()[:1], ["car"])
        assert score.counts["unsupported"] == unsupported


def test_missing_packages_are_reported_before_the_first_request(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.benchmarks.nltk_data.is_installed", lambda package: False)
    with start_server(ScriptedServer(lambda _: ScriptedReply("dog"))) as server:
        result = invoke_run(server, data, tmp_path / "run", "--no-similarity", task="amber-generative")
    assert isinstance(result.exception, EvaluationError)
    assert "averaged_perceptron_tagger_eng" in output_of(result)
    assert not server.requests


def test_the_files_of_single_dimensions_are_enough(data: Path) -> None:
    query = data / "data" / "query"
    (query / "query_discriminative.json").unlink()
    (query / "query_discriminative-relation.json").write_text(json.dumps(QUERIES[5:]))
    (query / "query_discriminative-existence.json").write_text(json.dumps(QUERIES[4:5]))
    questions = AmberTask(data, TaskOptions(suffix="Please answer yes or no.")).load_questions()
    assert [question.scope for question in questions] == ["existence", "relation", "relation"]
    assert questions[0].prompt == "Is it 5? Please answer yes or no."


def test_the_file_of_all_queries_is_enough(data: Path) -> None:
    query = data / "data" / "query"
    for file in list(query.iterdir()):
        file.unlink()
    (query / "query_all.json").write_text(json.dumps(QUERIES))
    (data / "image").rename(data / "data" / "images")
    assert len(AmberTask(data / "data", TaskOptions()).load_questions()) == 5


def test_another_parser_can_be_selected(data: Path) -> None:
    task = AmberTask(data, TaskOptions(parser="vlmevalkit"))
    questions = task.load_questions()
    answers = ["yes, it is", "No.", "perhaps", "Yes.", "no"]
    scores = task.score_answers(questions, answers)
    assert [score.detail["parsed"] for score in scores] == ["yes", "no", None, "yes", "no"]
    tables = task.build_tables(questions, {"plain": answers})
    assert tables[0].rows[0].values[0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("file", "rows", "message"),
    [
        (QUERY_FILE, [{**QUERIES[2], "id": 9}], 'field "[0].id": 9 is not an integer from 1 to 7'),
        (QUERY_FILE, [QUERIES[2], QUERIES[2]], 'field "[1].id": 3 is repeated'),
        (QUERY_FILE, [{**QUERIES[2], "image": "x.jpg"}], 'field "[0].image": there is no image x.jpg'),
        (QUERY_FILE, QUERIES[:1], "there is no discriminative query"),
        ("annotations.json", [{**each, "truth": "maybe"} for each in ANNOTATIONS], "is 'maybe', not yes or no"),
        ("annotations.json", ANNOTATIONS[1:], "must be 3 at this position"),
    ],
)  # fmt: skip
def test_unusable_files_are_refused(data: Path, file: str, rows: list[object], message: str) -> None:
    (data / "data" / file).write_text(json.dumps(rows))
    with pytest.raises(InputError) as refused:
        AmberTask(data, TaskOptions()).load_questions()
    assert message in str(refused.value)


def test_missing_files_are_named(data: Path) -> None:
    (data / "data" / "safe_words.txt").unlink()
    with pytest.raises(InputError, match=r"there is no safe_words\.txt"):
        AmberGenerativeTask(data, TaskOptions()).load_questions()
    (data / "data" / "query" / "query_discriminative.json").unlink()
    with pytest.raises(InputError, match=r"there is no query_discriminative\.json"):
        AmberTask(data, TaskOptions()).load_questions()


def test_an_object_without_an_entry_in_relation_is_refused(data: Path) -> None:
    rows = [{**ANNOTATIONS[0], "hallu": ["unicorn"]}, *ANNOTATIONS[1:]]
    (data / "data" / "annotations.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="'unicorn' is not in the relations"):
        AmberGenerativeTask(data, TaskOptions()).load_questions()
