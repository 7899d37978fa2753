"""The task `dash-b` on files in the official layout, with answers of a worked example."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks.dash_b import DashBParser, DashBTask
from eval.core.task import TaskOptions
from eval.errors import EvaluationError, InputError
from tests.eval.analysis.test_bias_control import list_logprobs
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedReply, ScriptedServer, image_of, start_server, strategy_of

ANSWERS = ("No.", "Yes, I can", "I am not sure", "Yes", "It is a cello", "yes no")
PARSED = ("no", "yes", "no", "yes", None, "yes")
INDICES = {
    "neg": {"laion": {"Cello": ["0.png", "1.png"]}, "bing": {"orange": ["0.png"]}},
    "pos": {"laion": {"Cello": ["0.png"], "orange": ["0.png"]}, "bing": {"Cello": ["0.png"]}},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images, of which four are called 0.png in a folder `Cello` or `orange`. Their colour is their number."""
    number = 0
    for kind, sources in INDICES.items():
        for source, objects in sources.items():
            for name, files in objects.items():
                folder = tmp_path / "images" / kind / source / name
                folder.mkdir(parents=True)
                for file in files:
                    Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / file)
                    number += 1
        (tmp_path / "images" / f"dash_benchmark_{kind}.json").write_text(json.dumps(sources))
    return tmp_path


def number_images(data: Path) -> dict[str, int]:
    """Map the content of each image, as in a request, to its number."""
    questions = DashBTask(data, TaskOptions()).load_questions()
    images = [each.image for each in questions]
    return {base64.b64encode(image.read_bytes()).decode(): at for at, image in enumerate(images) if image}


def test_run_has_the_official_numbers(data: Path, tmp_path: Path) -> None:
    numbers = number_images(data)

    def script(request: dict[str, Any]) -> ScriptedReply:
        at = numbers[image_of(request).partition(",")[2]]
        if strategy_of(request) == "plain":
            return ScriptedReply(ANSWERS[at], logprobs=list_logprobs(at - 2.5))
        return ScriptedReply("yes")

    out = tmp_path / "run"
    with start_server(ScriptedServer(script)) as server:
        result = invoke_run(server, data, out, "--strategies", "vhr", task="dash-b")
    assert result.exit_code == 0, output_of(result)
    prompts = {each["messages"][0]["content"][1]["text"] for each in server.requests}
    assert prompts == {
        f"Can you see a {name} in this image? Please answer only with yes or no." for name in ("Cello", "orange")
    }
    [scope] = read_results(out)["scopes"]
    assert (scope["questions"], scope["images"], scope["clusters"]) == (6, 6, 2)
    assert "6 questions on 6 images, 2 objects" in (out / "report.md").read_text()
    assert "resampled by object" in (out / "report.md").read_text()
    assert "resampled by object" in (out / "report.html").read_text()
    plain, all_yes = scope["rows"][0]["metrics"], scope["constant_rows"][0]["metrics"]
    names = ("accuracy", "tnr", "tpr", "harmonic_mean")
    assert [plain[name]["value"] for name in names] == pytest.approx([2 / 3] * 4)
    assert [all_yes[name]["value"] for name in names] == [0.5, 0, 1, 0]
    accuracy = scope["rows"][1]["against_plain"]["accuracy"]
    # Images of one object with one name are different questions: all six count in McNemar's test.
    assert (accuracy["gained"], accuracy["lost"]) == (1, 2)
    [control] = scope["bias"]["controls"]
    assert control["metrics"]["harmonic_mean"]["control"] == 0  # all questions are above the threshold
    assert scope["bias"]["auroc"]["value"] == 1
    assert invoke("verify", out).exit_code == 0
    assert invoke("export", out, "--strategy", "plain", "--out", tmp_path / "official").exit_code == 0
    rows = json.loads((tmp_path / "official" / "answers.json").read_text())
    assert [row["answer"] for row in rows] == list(PARSED)
    assert rows[2] == {
        "img_id": "0.png", "object_name": "orange", "gt": "no", "response": "I am not sure", "answer": "no",
    }  # fmt: skip


def test_comparison_of_two_runs_resamples_objects(data: Path, tmp_path: Path) -> None:
    for name, answer in (("a", "yes"), ("b", "no")):
        with start_server(ScriptedServer(lambda _, answer=answer: ScriptedReply(answer))) as server:
            result = invoke_run(server, data, tmp_path / name, task="dash-b")
        assert result.exit_code == 0, output_of(result)
    result = invoke("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert result.exit_code == 0, output_of(result)
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["scopes"][0]["images"] == 6
    assert "Intervals resample objects" in (tmp_path / "c" / "compare.md").read_text()


def test_answers_are_read_as_in_the_official_script() -> None:
    parser = DashBParser()
    assert [parser.parse(answer, "") for answer in ANSWERS] == list(PARSED)
    assert [parser.is_unparsed(answer) for answer in ANSWERS] == [parsed is None for parsed in PARSED]


def test_another_parser_can_be_selected(data: Path) -> None:
    task = DashBTask(data, TaskOptions(parser="vlmevalkit"))
    scores = task.score_answers(task.load_questions(), ANSWERS)
    assert [score.detail["parsed"] for score in scores] == ["no", "yes", None, "yes", None, None]
    with pytest.raises(EvaluationError, match="no parser 'nobody'"):
        DashBTask(data, TaskOptions(parser="nobody"))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "there is no dash_benchmark_pos.json"),
        ({"laion": []}, 'field "laion": must be an object'),
        ({"laion": {"Cello": "0.png"}}, 'field "laion.Cello": must be a list of strings'),
        ({"laion": {"Cello": ["9.png"]}}, 'field "laion.Cello[0]": there is no image'),
    ],
)
def test_unusable_files_are_refused(data: Path, index: object, message: str) -> None:
    file = data / "images" / "dash_benchmark_pos.json"
    file.unlink() if index is None else file.write_text(json.dumps(index))
    with pytest.raises(InputError) as refused:
        DashBTask(data, TaskOptions()).load_questions()
    assert message in str(refused.value)
