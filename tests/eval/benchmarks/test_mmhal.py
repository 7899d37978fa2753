"""The task `mmhal` on files in the released format, with the verdicts of a worked example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmarks.mmhal import MmhalTask
from eval.core.task import TaskOptions
from eval.errors import EvaluationError, InputError, RunError
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedReply, ScriptedServer, prompt_of, start_server, strategy_of

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
VERDICTS = ("Fine.\nRating: 6, very informative", "**Rating:** 5", "Rating: 3", "I would give Rating: 4 or Rating: 5",
            "rating: 0", "Rating: 10", "Score 5", "Rating: 2")  # fmt: skip
RATINGS = (6, 0, 3, 0, 0, 1, 0, 2)
JUDGE = ("--judge-model", "strict")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rows = [
        {
            "question_type": kind,
            "question_topic": "food",
            "image_id": f"{at:016x}",
            "image_src": f"https://example.org/6/{at}_o.jpg",
            "image_content": ["Dog", "Grass"],
            "question": f"What is at {at}?",
            "gt_answer": f"A dog at {at}",
            "model_answer": "",
        }
        for at, kind in enumerate(TYPES)
    ]
    (tmp_path / "response_template.json").write_text(json.dumps(rows))
    for at in range(len(TYPES)):
        Image.new("RGB", (8, 1 + at)).save(tmp_path / "images" / f"{at}_o.jpg")
    return tmp_path


def answer(request: dict[str, Any]) -> ScriptedReply:
    """Answer with the strategy and the number in the question."""
    return ScriptedReply(f"{strategy_of(request)} sees {prompt_of(request)[-2]}")


def read_text(request: dict[str, Any]) -> str:
    """Return the prompt of a request to the judge, which has no image."""
    return str(request["messages"][0]["content"])


def rate(request: dict[str, Any]) -> ScriptedReply:
    """Rate plain decoding as in the worked example, and the other strategy with 5."""
    text = read_text(request)
    if "vhr sees" in text:
        return ScriptedReply("Rating: 5")
    return ScriptedReply(VERDICTS[int(text.partition("plain sees ")[2][0])])


def start_judge(script: Any = rate) -> Any:
    return start_server(ScriptedServer(script, strategies=False, model="strict"))


def list_failures(out: Path) -> list[dict[str, Any]]:
    failures: list[dict[str, Any]] = json.loads((out / "failures.json").read_text())
    return failures


def test_run_has_the_numbers_of_the_worked_example(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(answer)) as server, start_judge() as judge:
        options = ("--strategies", "vhr", "--judge-url", f"{judge.url}/v1", *JUDGE)
        result = invoke_run(server, data, out, *options, task="mmhal")
        assert result.exit_code == 0, output_of(result)
        assert prompt_of(server.requests[0]) == "What is at 0?"
        assert len(judge.requests) == 16
        assert judge.requests[0]["temperature"] == 0
        assert {"Dog, Grass", "A dog at 3", "What is at 3?", "plain sees 3"} <= {
            part for text in map(read_text, judge.requests) for part in
            ("Dog, Grass", "A dog at 3", "What is at 3?", "plain sees 3") if part in text
        }  # fmt: skip
        # The same command has no request left.
        assert invoke_run(server, data, out, *options, task="mmhal").exit_code == 0
        assert (len(server.requests), len(judge.requests)) == (16, 16)
    results = read_results(out)
    rows = {row["strategy"]: row for row in results["scopes"][0]["rows"]}
    values = {
        label: [row["metrics"][name]["value"] for name in ("rating", "hallucination_rate")]
        for label, row in rows.items()
    }
    assert values == {"plain": [1.5, 0.75], "vhr": [5, 0]}
    difference = rows["vhr"]["against_plain"]["hallucination_rate"]
    assert (difference["test"], difference["gained"], difference["lost"]) == ("mcnemar", 0, 6)
    notes = results["arms"][0]["notes"]
    assert (notes["judge"], notes["unparsed"], len(notes["prompt"])) == ("strict", 3, 16)
    [table] = results["tables"]
    assert (table["headers"], table["rows"][0]["values"]) == (list(TYPES), list(RATINGS))
    assert "| 6.00" in (out / "report.md").read_text()
    # Neither the server nor the judge runs any more.
    assert invoke("verify", out).exit_code == 0
    assert invoke("report", out).exit_code == 0
    assert invoke("compare", out, out, "--strategy-a", "plain", "--strategy-b", "vhr").exit_code == 0
    assert read_results(out)["scopes"] == results["scopes"]


def test_answers_can_be_rated_later_and_by_another_judge(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(answer)) as server:
        result = invoke_run(server, data, out, task="mmhal")
    assert result.exit_code == 0, output_of(result)
    assert f"onlyseen-eval judge {out}" in output_of(result)
    assert "not rated yet" in output_of(invoke("report", out))
    assert invoke("export", out, "--strategy", "plain", "--out", tmp_path / "official").exit_code == 0
    rows = json.loads((tmp_path / "official" / "response.json").read_text())
    assert rows[3] == {**json.loads((data / "response_template.json").read_text())[3], "model_answer": "plain sees 3"}
    with start_judge() as judge:
        for model, expected in (("strict", 1.5), ("mild", 1.5)):
            result = invoke("judge", out, "--judge-url", f"{judge.url}/v1", "--judge-model", model)
            assert result.exit_code == 0, output_of(result)
            results = read_results(out)
            assert results["scopes"][0]["rows"][0]["metrics"]["rating"]["value"] == expected
            assert results["arms"][0]["notes"]["judge"] == model
        assert len(judge.requests) == 16
        assert invoke("judge", out, "--judge-url", f"{judge.url}/v1", *JUDGE).exit_code == 0
        assert len(judge.requests) == 16
    assert invoke("verify", out).exit_code == 0


def test_a_failure_of_the_judge_counts_as_a_failed_request(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def fail(request: dict[str, Any]) -> ScriptedReply:
        return ScriptedReply(" ") if "plain sees 3" in read_text(request) else rate(request)

    with start_server(ScriptedServer(answer)) as server:
        assert invoke_run(server, data, out, "--strategies", "vhr", task="mmhal").exit_code == 0
    with start_judge(fail) as judge:
        result = invoke("judge", out, "--judge-url", f"{judge.url}/v1", *JUDGE)
    assert result.exit_code == 3, output_of(result)
    [failure] = list_failures(out)
    assert (failure["strategy"], failure["question"]) == ("plain", "3")
    assert "is empty" in failure["reason"]
    results = read_results(out)
    [scope] = results["scopes"]
    assert (scope["questions"], results["complete"]) == (7, False)
    assert "plain: 1 questions have no answer or no verdict yet" in results["warnings"][0]
    with start_judge() as judge:
        assert invoke("judge", out, "--judge-url", f"{judge.url}/v1", *JUDGE).exit_code == 0
        assert len(judge.requests) == 1
    assert list_failures(out) == []
    assert read_results(out)["scopes"][0]["questions"] == 8


def test_a_judge_that_never_answers_ends_the_command(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start_server(ScriptedServer(answer)) as server:
        assert invoke_run(server, data, out, task="mmhal").exit_code == 0
    with start_judge(lambda _: ScriptedReply("")) as judge:
        result = invoke("judge", out, "--judge-url", f"{judge.url}/v1", *JUDGE, "--concurrency", "1")
        assert isinstance(result.exception, RunError)
        assert "too many failures" in output_of(result)
        assert len(judge.requests) < 8


def test_shards_are_merged_with_their_verdicts(data: Path, tmp_path: Path) -> None:
    shards = [tmp_path / "1", tmp_path / "2"]
    with start_server(ScriptedServer(answer)) as server, start_judge() as judge:
        for number, out in enumerate(shards, 1):
            options = ("--shard", f"{number}/2", "--judge-url", f"{judge.url}/v1", *JUDGE)
            assert invoke_run(server, data, out, *options, task="mmhal").exit_code == 0
    assert invoke("merge", *shards, "--out", tmp_path / "merged").exit_code == 0
    assert read_results(tmp_path / "merged")["scopes"][0]["rows"][0]["metrics"]["rating"]["value"] == 1.5


def test_a_prompt_of_a_file_replaces_ours(data: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{question_topic}: {model_answer}")
    with start_server(ScriptedServer(answer)) as server, start_judge() as judge:
        options = ("--judge-url", f"{judge.url}/v1", *JUDGE, "--judge-prompt", str(prompt))
        assert invoke_run(server, data, tmp_path / "run", *options, task="mmhal").exit_code == 0
        assert sorted(map(read_text, judge.requests))[0] == "food: plain sees 0"
        prompt.write_text("{author}")
        result = invoke_run(server, data, tmp_path / "other", *options, task="mmhal")
        assert isinstance(result.exception, InputError)
        assert 'response_template.json: field "[0].author": is missing' in output_of(result)
        assert len(server.requests) == 8


def test_options_of_the_judge_are_checked(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(answer)) as server:
        for task, options, message in (
            ("mmhal", JUDGE, "--judge-url and --judge-model: give both, or none"),
            ("mme", (*JUDGE, "--judge-url", "http://127.0.0.1:1/v1"), "mme has no judge"),
        ):
            result = invoke_run(server, data, tmp_path / "run", *options, task=task)
            assert isinstance(result.exception, EvaluationError)
            assert message in output_of(result)


def test_a_limit_selects_types_in_turn(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(answer)) as server:
        assert invoke_run(server, data, tmp_path / "run", "--limit", "3", task="mmhal").exit_code == 0
    assert len({prompt_of(request) for request in server.requests}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_src": "https://example.org/no.jpg"}, 'field "[2].image_src": there is no image no.jpg'),
        ({"image_content": "Dog"}, 'field "[2].image_content": must be a list of strings'),
        ({"gt_answer": None}, 'field "[2].gt_answer": must be a string, not null'),
    ],
)
def test_invalid_rows_are_refused(data: Path, change: dict[str, object], message: str) -> None:
    file = data / "response_template.json"
    rows = json.loads(file.read_text())
    rows[2] |= change
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError) as refused:
        MmhalTask(data, TaskOptions()).load_questions()
    assert message in str(refused.value)
    file.unlink()
    with pytest.raises(InputError, match=r"there is no response_template\.json"):
        MmhalTask(data, TaskOptions()).load_questions()


def test_runs_with_other_judges_are_not_compared(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(answer)) as server, start_judge() as judge:
        for model in ("strict", "mild"):
            options = ("--judge-url", f"{judge.url}/v1", "--judge-model", model)
            assert invoke_run(server, data, tmp_path / model, *options, task="mmhal").exit_code == 0
    result = invoke("compare", tmp_path / "strict", tmp_path / "mild")
    assert isinstance(result.exception, RunError)
    assert "rated by other judges" in output_of(result)
