"""Detection of hallucinated mentions by the check, grounding and log-probability."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.analysis import detection
from eval.analysis.detection import LabelledMention, summarize_mentions
from eval.core.results import DetectionResult
from eval.core.statistics import Bootstrap
from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, read_stored_answers, reply_by_hash
from tests.eval.fake_server import ScriptedReply, ScriptedServer, start_server

IMAGES = 12


def draw_mentions(seed: int, count: int = 60) -> list[LabelledMention]:
    """Draw mentions whose signals differ in how well they separate hallucinated ones, with ties."""
    rng = np.random.default_rng(seed)
    mentions = []
    for _ in range(count):
        is_hallucinated = bool(rng.random() < 0.3)
        noise = rng.normal(size=3)
        signals = {
            "check": float(np.round(1 / (1 + np.exp(-(3 * is_hallucinated - 1.5 + noise[0]))), 1)),
            "grounding": float(is_hallucinated + noise[1]),
            "log-probability": float(0.5 * is_hallucinated + noise[2]),
        }
        mentions.append(LabelledMention(int(rng.integers(IMAGES)), is_hallucinated, signals))
    return mentions


def summarize(mentions: list[LabelledMention]) -> DetectionResult:
    result = summarize_mentions("plain", mentions, 0, Bootstrap.draw(IMAGES))
    assert result is not None
    return result


def area_by_pairs(mentions: list[LabelledMention], signal: str) -> float:
    """Compute the area as the share of pairs in which the hallucinated mention has the larger value."""
    pairs = [
        (one.signals[signal], other.signals[signal])
        for one in mentions
        for other in mentions
        if one.is_hallucinated and not other.is_hallucinated
    ]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def precision_by_thresholds(mentions: list[LabelledMention], signal: str) -> float:
    """Compute the average precision threshold by threshold."""
    total, found, result = sum(each.is_hallucinated for each in mentions), 0, 0.0
    for threshold in sorted({each.signals[signal] for each in mentions}, reverse=True):
        above = [each.is_hallucinated for each in mentions if each.signals[signal] >= threshold]
        result += (sum(above) - found) / total * sum(above) / len(above)
        found = sum(above)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_areas_equal_their_definition(seed: int) -> None:
    mentions = draw_mentions(seed)
    result = summarize(mentions)
    for name in ("check", "grounding", "log-probability"):
        assert result.signals[name].auroc.value == pytest.approx(area_by_pairs(mentions, name))
        assert result.signals[name].average_precision.value == pytest.approx(precision_by_thresholds(mentions, name))
    lead = result.signals["grounding"].check_lead
    assert lead is not None
    assert lead.value == pytest.approx(area_by_pairs(mentions, "check") - area_by_pairs(mentions, "grounding"))
    assert result.signals["check"].check_lead is None
    assert result.signals["check"].delong is None
    test = result.signals["grounding"].delong
    assert test is not None
    assert test.low is not None
    assert test.high is not None
    assert (test.low + test.high) / 2 == pytest.approx(lead.value)


def test_intervals_resample_images() -> None:
    """Each resample is scored as a set in which the mentions of an image occur as often as the image."""
    mentions, draws = draw_mentions(7), Bootstrap.draw(IMAGES)
    _, areas = detection.auroc(mentions, "check", draws)
    _, precisions = detection.average_precision(mentions, "check", draws)
    for weights, area, precision in list(zip(draws.weights, areas, precisions, strict=True))[:20]:
        resample = [each for each in mentions for _ in range(int(weights[each.image]))]
        assert area == pytest.approx(area_by_pairs(resample, "check"))
        assert precision == pytest.approx(precision_by_thresholds(resample, "check"))


def test_calibration_error_is_zero_where_probabilities_are_shares() -> None:
    mentions = [LabelledMention(number % IMAGES, number % 4 == 0, {"check": 0.25}) for number in range(48)]
    result = summarize(mentions)
    assert result.calibration_error.value == pytest.approx(0)
    assert [(each.mentions, each.probability, each.real) for each in result.calibration] == [(48, 0.75, 0.75)]


def test_calibration_error_is_the_gap_of_an_overconfident_check() -> None:
    mentions = [LabelledMention(number % IMAGES, number % 2 == 0, {"check": 0.1}) for number in range(48)]
    assert summarize(mentions).calibration_error.value == pytest.approx(0.4)


def test_one_class_alone_has_no_result() -> None:
    mentions = [LabelledMention(0, False, {"check": 0.1})]
    assert summarize_mentions("plain", mentions, 0, Bootstrap.draw(IMAGES)) is None
    assert summarize_mentions("plain", [], 3, Bootstrap.draw(IMAGES)) is None


def reply_with_claims(request: dict[str, Any]) -> ScriptedReply:
    """Name two objects, claim both, and give the first the higher probability."""
    assert request["decoding"]["check"] is True
    assert request["decoding"]["grounding"] is True
    reply = reply_by_hash(request)
    words = re.findall(r"\S+\s*", reply.text)
    reply.logprobs = [
        {"token": word, "logprob": -0.1 * number, "grounding": 0.5 - number} for number, word in enumerate(words)
    ]
    reply.claims = [
        {"text": found[1], "start": found.start(1), "end": found.end(1), "question": "?", "probability": probability}
        for found, probability in zip(re.finditer(r"\ba ([a-z ]+?)(?= too|\.)", reply.text), (0.9, 0.2), strict=True)
    ]
    return reply


def test_run_reports_detection_for_each_strategy(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(reply_with_claims)) as server:
        result = invoke_run(server, data, tmp_path / "run", "--strategies", "vhr", "--check", task="chair")
    assert result.exit_code == 0, output_of(result)
    rows = read_results(tmp_path / "run")["detection"]
    assert [row["strategy"] for row in rows] == ["plain", "vhr"]
    for row in rows:
        assert set(row["signals"]) == {
            "check",
            "grounding",
            "log-probability",
            "position",
            "grounding and log-probability",
            "grounding, log-probability and position",
        }
        assert row["signals"]["check"]["auroc"]["low"] is not None
        assert row["mentions"] > 0
    assert read_stored_answers(tmp_path / "run")[0]["receipt"]["claims"][0]["question"] == "?"
    for report in ("report.md", "report.html"):
        text = (tmp_path / "run" / report).read_text()
        assert "Detection of hallucinated mentions" in text
        assert "average precision" in text
        assert text.count("DeLong&#39;s test</th>" if report.endswith("html") else "| DeLong's test |") == 1
    assert "Calibration of the check" in (tmp_path / "run" / "report.html").read_text()
    assert invoke("verify", tmp_path / "run").exit_code == 0


def test_answers_with_and_without_check_have_different_keys(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(reply_by_hash)) as server:
        assert invoke_run(server, data, tmp_path / "run", task="chair").exit_code == 0
        assert "detection" not in (tmp_path / "run" / "report.md").read_text().lower()
        without = len(server.requests)
        server.script = reply_with_claims
        result = invoke_run(server, data, tmp_path / "checked", "--check", task="chair")
        assert result.exit_code == 0, output_of(result)
        assert len(server.requests) == 2 * without


def test_receipt_without_claims_is_an_invalid_response(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(reply_by_hash)) as server:
        result = invoke_run(server, data, tmp_path / "run", "--check", task="chair")
    assert result.exit_code != 0
    assert "claims of the answer were not checked" in output_of(result)


def test_check_needs_labels_and_a_server_that_checks(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(reply_by_hash)) as server:
        assert "pope has no labels for claims" in output_of(invoke_run(server, data, tmp_path / "a", "--check"))
    with start_server(ScriptedServer(reply_by_hash, strategies=False)) as server:
        result = invoke_run(server, data, tmp_path / "b", "--check", task="chair")
        assert "--check needs a server with /v1/strategies" in output_of(result)
