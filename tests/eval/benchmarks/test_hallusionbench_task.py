"""The task `hallusionbench` on files in the official layout, with answers of a worked example."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks.hallusionbench.task import HallusionBenchTask
from eval.core.task import TaskOptions
from eval.errors import InputError
from tests.eval.analysis.test_bias_control import list_logprobs
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedReply, ScriptedServer, image_of, prompt_of, start_server, strategy_of

WORDS = {"yes": "Yes, it is.", "no": "No.", "unclear": "It shows both."}
# category, visual input, figure, question, truth, answer
ROWS = [
    ("VS", 0, 0, 0, "1", "unclear"),  # correct, because the visual supplement is missing
    ("VS", 1, 1, 0, "1", "no"),
    ("VS", 2, 2, 0, "0", "no"),
    ("VS", 0, 0, 1, "0", "no"),
    ("VS", 1, 1, 1, "0", "no"),
    ("VD", 1, 0, 0, "1", "yes"),
    ("VD", 2, 1, 0, "0", "no"),
    ("VD", 1, 0, 1, "0", "no"),
    ("VD", 2, 1, 1, "0", "unclear"),
]


def make_row(category: str, visual_input: int, figure: int, question: int, truth: str, set_id: int) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": str(visual_input),
        "set_id": str(set_id),
        "figure_id": str(figure),
        "sample_note": "a chart",
        "question_id": str(question),
        "question": f"{category} {set_id} {figure} {question}?",
        "gt_answer_details": "The chart says so.",
        "gt_answer": truth,
        "filename": None if visual_input == 0 else f"./{category}/chart/{set_id}_{figure}.png",
    }


def write_data(folder: Path, sets: int = 1) -> Path:
    """Write the rows of the worked example once for each set. The image has the category and figure as its size."""
    rows = [make_row(*row[:5], set_id=at) for at in range(sets) for row in ROWS]
    (folder / "HallusionBench.json").write_text(json.dumps(rows))
    for row in rows:
        if row["filename"]:
            file = folder / "hallusion_bench" / row["filename"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 + len(row["category"]), 1 + int(row["figure_id"])), "red").save(file)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def answer_of(request: dict[str, Any]) -> str:
    category, _, figure, question = prompt_of(request).rstrip("?").split()
    return next(row[5] for row in ROWS if (row[0], row[2], row[3]) == (category, int(figure), int(question)))


def has_image(request: dict[str, Any]) -> bool:
    return len(request["messages"][0]["content"]) == 2


def script(request: dict[str, Any]) -> ScriptedReply:
    """Refuse strategies without an image, as the server does."""
    if strategy_of(request) == "plain":
        score = {"yes": 1.0, "no": -1.0, "unclear": 0.5}[answer_of(request)]
        return ScriptedReply(WORDS[answer_of(request)], logprobs=list_logprobs(score))
    if not has_image(request):
        return ScriptedReply("Strategy 'vcd' needs an image", status=400)
    return ScriptedReply("Yes.")


def test_run_has_the_numbers_of_the_worked_example(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(script)) as server:
        result = invoke_run(server, data, out, "--strategies", "vcd", "--no-controls", task="hallusionbench")
    assert result.exit_code == 0, output_of(result)
    assert len(server.requests) == 9 + 7  # both questions without an image are asked once
    shown = next(each for each in server.requests if prompt_of(each) == "VD 0 1 0?")
    with Image.open(io.BytesIO(base64.b64decode(image_of(shown).partition(",")[2]))) as image:
        assert image.size == (10, 2)
    results = read_results(out)
    assert results["cluster"] == "set"
    scopes = {scope["scope"]: scope for scope in results["scopes"]}
    assert {name: (scope["questions"], scope["clusters"]) for name, scope in scopes.items()} == {
        "VD": (4, 1),
        "VS": (5, 1),
        "all questions": (9, 2),
    }
    rows = {row["strategy"]: row for key in ("rows", "constant_rows") for row in scopes["all questions"][key]}
    names = ("accuracy", "figure_accuracy", "question_accuracy", "easy_accuracy", "hard_accuracy", "yes_ratio")
    values = {strategy: [row["metrics"][name]["value"] for name in names] for strategy, row in rows.items()}
    assert values["plain"] == pytest.approx([7 / 9, 2 / 4, 2 / 4, 3 / 4, 2 / 3, 1 / 9])
    assert values["vcd"] == pytest.approx([4 / 9, 0, 0, 2 / 4, 0, 7 / 9])
    assert values["all no"] == pytest.approx([6 / 9, 2 / 4, 2 / 4, 2 / 4, 3 / 3, 0])
    # Questions of a set depend on each other, so that the test exchanges strategies within sets.
    assert rows["vcd"]["against_plain"]["accuracy"]["test"] == "exchange"
    [control] = [each for each in scopes["all questions"]["bias"]["controls"] if each["threshold"] == "all"]
    assert set(names) == set(control["metrics"])
    assert results["arms"][0]["notes"] == {"parser": "vlmevalkit", "unparsed": 2}
    cost = {each["strategy"]: each["answers"] for each in results["costs"]}
    assert cost == {"plain": 7, "vcd": 7}
    assert invoke("verify", out).exit_code == 0


def test_export_has_the_official_rows(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(script)) as server:
        assert invoke_run(server, data, out, task="hallusionbench").exit_code == 0
    assert invoke("export", out, "--strategy", "plain", "--out", tmp_path / "official").exit_code == 0
    file = tmp_path / "official" / "HallusionBench_result.json"
    assert make_row(*ROWS[5][:5], set_id=0) | {"model_prediction": "Yes, it is."} in json.loads(file.read_text())
    scored = json.loads(invoke("score", "hallusionbench", "--results", file, "--json").output)["all"]
    assert (scored["aAcc"], scored["qAcc"], scored["hard"]) == (7 / 9, 2 / 4, 2 / 3)


def test_a_limited_run_asks_whole_sets(tmp_path: Path) -> None:
    data = write_data(tmp_path, sets=3)
    with start_server(ScriptedServer(script)) as server:
        assert invoke_run(server, data, tmp_path / "run", "--limit", "6", task="hallusionbench").exit_code == 0
    scopes = {scope["scope"]: scope for scope in read_results(tmp_path / "run")["scopes"]}
    assert (scopes["VD"]["questions"], scopes["VD"]["clusters"]) == (8, 2)
    assert (scopes["VS"]["questions"], scopes["VS"]["clusters"]) == (10, 2)


def test_a_set_without_a_score_of_plain_is_left_out_of_the_bias_control(tmp_path: Path) -> None:
    data = write_data(tmp_path, sets=2)

    def lack(request: dict[str, Any]) -> ScriptedReply:
        reply = script(request)
        if prompt_of(request) == "VD 1 0 0?":
            reply.logprobs = None
        return reply

    with start_server(ScriptedServer(lack)) as server:
        assert invoke_run(server, data, tmp_path / "run", task="hallusionbench").exit_code == 0
    scopes = {scope["scope"]: scope for scope in read_results(tmp_path / "run")["scopes"]}
    assert (scopes["VD"]["bias"]["answers"], scopes["VD"]["bias"]["left_out"]) == (4, 4)
    assert (scopes["VS"]["bias"]["answers"], scopes["VS"]["bias"]["left_out"]) == (10, 0)


def test_a_set_that_lacks_an_answer_is_not_counted(data: Path) -> None:
    task = HallusionBenchTask(data, TaskOptions())
    questions = task.load_questions()
    scores = task.score_answers(questions[:8], ["No"] * 8)
    assert [score.counts.get("n") for score in scores] == [1] * 4 + [None] * 4


def test_another_parser_can_be_selected(data: Path) -> None:
    task = HallusionBenchTask(data, TaskOptions(parser="lmms-eval", suffix="Answer yes or no."))
    question = task.load_questions()[0]
    assert question.prompt == "VD 0 0 0? Answer yes or no."
    assert task.score_answers([question], ["Yes."])[0].detail["parsed"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "XX"}, "field \"[5].category\": is 'XX', not VD or VS"),
        ({"figure_id": "7"}, 'field "[5].figure_id": there is no image VD/chart/0_7.png under'),
        ({"question": None}, 'field "[5].question": must be a string, not null'),
        ({"question_id": "1"}, "repeats a question about the same figure"),
    ],
)
def test_invalid_rows_are_refused(data: Path, change: dict[str, object], message: str) -> None:
    file = data / "HallusionBench.json"
    rows = json.loads(file.read_text())
    rows[5] |= change
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError) as refused:
        HallusionBenchTask(data, TaskOptions()).load_questions()
    assert message in str(refused.value)


def test_a_folder_without_the_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no HallusionBench\.json"):
        HallusionBenchTask(tmp_path, TaskOptions()).load_questions()
