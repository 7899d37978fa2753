"""The yes-bias control of a run: thresholds, tests, and the parts of the gain of a sampled strategy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.core.yes_bias import SampledDecoding
from tests.eval.cli_driver import (
    invoke,
    invoke_run,
    output_of,
    read_results,
    read_stored_answers,
    reply_by_hash,
    write_jsonl,
)
from tests.eval.core.test_yes_bias import LABELS, ROWS, SCORES
from tests.eval.fake_server import ScriptedReply, ScriptedServer, image_of, prompt_of, start_server, strategy_of


def list_logprobs(score: float, token: str = "Yes") -> list[dict[str, Any]]:
    """Build the log-probabilities of a first token whose score is `score`."""
    logprobs = {"Yes": -math.log1p(math.exp(-score)), "No": -math.log1p(math.exp(score))}
    top = [{"token": name, "logprob": value} for name, value in logprobs.items()]
    return [{"token": token, "logprob": -0.1, "top_logprobs": top}]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Sixteen questions about four images."""
    (tmp_path / "images").mkdir()
    (tmp_path / "pope").mkdir()
    for image in range(4):
        Image.new("RGB", (8, 8), (image, 0, 0)).save(tmp_path / "images" / f"{image}.png")
    rows = [
        {
            "question_id": number,
            "image": f"{number // 4}.png",
            "text": f"Is it {number}?",
            "label": ["no", "yes"][label],
        }
        for number, (label, _, _) in enumerate(ROWS)
    ]
    write_jsonl(tmp_path / "pope" / "random.jsonl", rows)
    return tmp_path


def answer(request: dict[str, Any]) -> ScriptedReply:
    """Answer as the worked example does. `truncate` corrects one answer of plain."""
    number = int(prompt_of(request).split("?")[0].removeprefix("Is it "))
    _, score, is_yes = ROWS[number]
    strategy = strategy_of(request)
    if strategy == "truncate":
        return ScriptedReply("Yes" if score > 0 or number == 14 else "No")
    if strategy == "vcd":
        return ScriptedReply("Yes" if is_yes else "No")
    logprobs = list_logprobs(score) if request.get("logprobs") else None
    return ScriptedReply("Yes" if score > 0 else "No", logprobs=logprobs)


def read_bias(out: Path, scope: int = 0) -> dict[str, Any]:
    bias: dict[str, Any] = read_results(out)["scopes"][scope]["bias"]
    return bias


def test_strategy_stands_beside_plain_at_its_yes_ratio(questions: Path) -> None:
    out = questions / "run"
    with start_server(ScriptedServer(answer)) as server:
        result = invoke_run(server, questions, out, "--strategies", "vcd")
    assert result.exit_code == 0, output_of(result)
    bias = read_bias(out)
    assert (bias["answers"], bias["left_out"], bias["bounded"], bias["splits"]) == (16, 0, 0, [])
    assert bias["unlike_score"] == 0
    assert bias["auroc"]["value"] == pytest.approx(0.78125)
    assert bias["auroc"]["low"] < 0.78125 < bias["auroc"]["high"]
    [scope] = bias["controls"]
    assert scope["threshold"] == "scope"
    assert scope["added"] == pytest.approx(0.55)
    accuracy, f1, yes_ratio = (scope["metrics"][name] for name in ("accuracy", "f1", "yes_ratio"))
    assert [accuracy[each] for each in ("plain", "control", "strategy")] == [0.625, 0.6875, 0.8125]
    assert [accuracy[each] for each in ("gain", "bias")] == [0.1875, 0.0625]
    beyond = accuracy["beyond"]
    assert (beyond["value"], beyond["gained"], beyond["lost"], beyond["p"]) == (0.125, 2, 0, 0.5)
    assert [f1[each] for each in ("plain", "control", "strategy")] == pytest.approx([0.571429, 0.705882, 0.823529])
    assert [yes_ratio[each] for each in ("plain", "control", "strategy")] == [0.375, 0.5625, 0.5625]
    row = "| `vcd` | per scope | +0.55 | Accuracy | 62.5 | 68.8 | 81.2 | +18.8 | +6.2 | +12.5 [+0.0, +37.5], p = 0.50"
    assert "## Gains beyond bias" in (out / "report.md").read_text()
    assert row in (out / "report.md").read_text()
    assert "<h2>Gains beyond bias</h2>" in (out / "report.html").read_text()
    assert "Gains beyond bias, random" in output_of(result)
    assert " +18.8 " in output_of(result)
    assert invoke("verify", out).exit_code == 0


def test_all_scopes_have_one_constant_together(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> ScriptedReply:
        reply, number = reply_by_hash(request), len(prompt_of(request)) + len(image_of(request)) % 7
        return ScriptedReply(reply.text, logprobs=list_logprobs(number - 30.0)) if "logprobs" in request else reply

    server.script = script
    out = tmp_path / "run"
    result = invoke_run(server, data, out, "--strategies", "vcd", "--temperature", "1", "--seeds", "0,1")
    assert result.exit_code == 0, output_of(result)
    overall = read_bias(out, -1)
    per_scope, together = overall["controls"][:2]
    assert [each["threshold"] for each in (per_scope, together)] == ["scope", "all"]
    assert per_scope["added"] is None
    constants = [read_bias(out, scope)["controls"][0]["added"] for scope in range(3)]
    assert min(constants) <= together["added"] <= max(constants)
    assert {read_bias(out, scope)["controls"][1]["added"] for scope in range(3)} == {together["added"]}
    accuracies = [read_bias(out, scope)["controls"][0]["metrics"]["accuracy"]["control"] for scope in range(3)]
    assert per_scope["metrics"]["accuracy"]["control"] == pytest.approx(sum(accuracies) / 3)
    for control in overall["controls"]:  # Questions that tie at the threshold share the places that are left.
        yes_ratio = control["metrics"]["yes_ratio"]
        assert yes_ratio["control"] == pytest.approx(yes_ratio["strategy"])
        assert control["metrics"]["accuracy"]["beyond"]["test"] == "exchange"
    assert invoke("verify", out).exit_code == 0


def test_gain_of_a_sampled_strategy_has_three_parts(questions: Path) -> None:
    out = questions / "run"
    with start_server(ScriptedServer(answer)) as server:
        result = invoke_run(server, questions, out, "--strategies", "vcd", "--temperature", "1")
    assert result.exit_code == 0, output_of(result)
    assert read_bias(out)["unlike_score"] is None
    [split] = read_bias(out)["splits"]
    assert (split["strategy"], split["control"]) == ("vcd", "truncate")
    for metric in split["metrics"].values():
        parts = [metric[name]["value"] for name in ("cut", "bias", "rest")]
        assert sum(parts) == pytest.approx(metric["gain"]["value"], abs=1e-12)
        assert metric["gain"]["value"] == pytest.approx(metric["strategy"] - metric["plain"])
    accuracy, yes_ratio = split["metrics"]["accuracy"], split["metrics"]["yes_ratio"]
    assert (accuracy["gain"]["value"], accuracy["cut"]["value"]) == (0.1875, 0.0625)
    assert yes_ratio["bias"]["value"] == pytest.approx(2 / 16)  # vcd says yes to two more questions than truncate
    assert yes_ratio["rest"]["value"] == pytest.approx(0, abs=1e-9)
    # Expected answers under the cut 0.1, with and without the constant.
    decoding = SampledDecoding(1, 0.1)
    before, after = decoding.compute_yes_shares(SCORES), decoding.match_yes_count(SCORES, 16 * 0.448266 + 2).shares
    assert before.mean() == pytest.approx(0.448266, abs=1e-6)
    assert accuracy["bias"]["value"] == pytest.approx(((after - before) * (2 * LABELS - 1.0)).mean(), abs=1e-5)
    report = (out / "report.md").read_text()
    assert "| `vcd` | truncate | " in report
    assert "| cut | bias | rest |" in report
    assert '<th scope="col">rest</th>' in (out / "report.html").read_text()
    assert invoke("verify", out).exit_code == 0


def test_only_plain_is_asked_for_log_probabilities(questions: Path) -> None:
    with start_server(ScriptedServer(answer)) as server:
        invoke_run(server, questions, questions / "run", "--strategies", "vcd")
    asked = {strategy_of(each): (each.get("logprobs"), each.get("top_logprobs")) for each in server.requests}
    assert asked == {"plain": (True, 20), "vcd": (None, None)}
    [stored] = [each for each in read_stored_answers(questions / "run") if each["question"] == "random/0"][:1]
    assert stored["yes_score"] == {"value": pytest.approx(2.2), "kind": "exact", "skipped": 0}


def test_questions_without_a_score_are_left_out_for_all(questions: Path) -> None:
    def script(request: dict[str, Any]) -> ScriptedReply:
        reply = answer(request)
        if strategy_of(request) == "plain" and "Is it 13?" in prompt_of(request):
            reply.logprobs = [{"token": "Yes", "logprob": -0.1, "top_logprobs": [{"token": "Maybe", "logprob": -0.1}]}]
        return reply

    with start_server(ScriptedServer(script)) as server:
        invoke_run(server, questions, questions / "run", "--strategies", "vcd")
    bias = read_bias(questions / "run")
    assert (bias["answers"], bias["left_out"]) == (15, 1)
    accuracy = bias["controls"][0]["metrics"]["accuracy"]
    assert accuracy["strategy"] == pytest.approx(13 / 15)
    assert accuracy["plain"] == pytest.approx(10 / 15)
    assert read_results(questions / "run")["scopes"][0]["questions"] == 16
    assert bias["unlike_score"] == 0
    assert (
        "1 answers are left out. 0 greedy answers are read unlike their score."
        in (questions / "run" / "report.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "reason"), [((), "no answer of plain decoding has log-prob"), (("--no-logprobs",), "turned off")]
)
def test_run_without_log_probabilities_is_scored_and_gives_the_reason(
    questions: Path, arguments: tuple[str, ...], reason: str
) -> None:
    out = questions / "run"
    with start_server(ScriptedServer(lambda request: ScriptedReply("Yes"))) as server:
        result = invoke_run(server, questions, out, "--strategies", "vcd", *arguments)
        assert result.exit_code == 0, output_of(result)
        assert any("logprobs" in each for each in server.requests) != bool(arguments)
        server.script = answer
        sent = len(server.requests)
        again = invoke_run(server, questions, out, "--strategies", "vcd")
        assert len(server.requests) == sent  # The key of an answer does not depend on log-probabilities.
    results = read_results(out)
    assert results["scopes"][0]["bias"] is None
    assert results["scopes"][0]["rows"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert reason in output_of(result)
    assert "No control of yes bias" in output_of(again)
    for report in ("report.md", "report.html"):
        assert "No control of yes bias: " in (out / report).read_text()


def test_pairs_are_scored_together_in_the_control(pairs: Path) -> None:
    """The score of MME counts pairs, so the control has decided answers."""

    def script(request: dict[str, Any]) -> ScriptedReply:
        is_yes = "not" not in prompt_of(request)
        if strategy_of(request) == "plain":
            return ScriptedReply("Yes", logprobs=list_logprobs(2.0 if is_yes else 1.0))
        return ScriptedReply("Yes" if is_yes else "No")

    with start_server(ScriptedServer(script)) as server:
        result = invoke_run(server, pairs, pairs / "run", "--strategies", "vhr", "--temperature", "1", task="mme")
    assert result.exit_code == 0, output_of(result)
    bias = read_bias(pairs / "run", -1)
    score = bias["controls"][0]["metrics"]["score"]
    assert [score[each] for each in ("plain", "control", "strategy")] == [0.5, 2, 2]
    assert bias["auroc"]["value"] == 1
    assert bias["splits"][0]["control"] is None
    assert list(bias["splits"][0]["metrics"]) == ["accuracy", "yes_ratio"]
