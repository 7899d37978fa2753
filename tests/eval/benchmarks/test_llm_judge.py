"""Scores of a judge model, with scripted verdicts."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from eval.benchmarks.llm_judge import MMHAL, Judge, cache_verdicts, score_mmhal, score_vallu
from eval.core.answer_store import AnswerStore
from eval.errors import EvaluationError, InputError
from tests.eval.cli_driver import run_process

ROW = {"question": "What?", "image_content": ["dog", "grass"], "gt_answer": "A {dog}", "model_answer": "A cat"}
FIVE_ASPECTS = "Helpfulness: 4\n**Clarity**: 5\nCorrectness: 2\nDepth: 3\nEngagement: 1"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([ROW] * 9))
    return file


@pytest.fixture
def judge() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        failures = 1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.headers["authorization"] == "Bearer secret"
            assert "A cat" in body["messages"][0]["content"]
            if type(self).failures:
                type(self).failures -= 1
                self.send_error(503)
                return
            reply = json.dumps({"choices": [{"message": {"content": "Fine.\nRating: 2"}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_mmhal_averages_the_ratings(results: Path) -> None:
    """Verdicts without exactly one rating count as 0, as in the official script."""
    verdicts = iter(["Rating: 6", "rating: 3", "Rating: 2", "none", "Rating: 1 or rating: 2", *["Rating: 5"] * 4])
    found = score_mmhal(results, lambda prompt: next(verdicts))
    assert found["judged"] is True
    assert (found["rating"], found["hallucination_rate"], found["unparsed"]) == (31 / 9, 3 / 9, 2)
    assert found["rating_by_type"] == [5.5, 3, 2, 0, 0, 5, 5, 5]


def test_mmhal_ratings_are_read_as_in_the_official_script(tmp_path: Path) -> None:
    """Markup between the word and the number hides a rating, and 10 is read as 1."""
    verdicts = {
        "Fine.\nRating: 6, very informative": 6,
        "**Rating:** 5": 0,
        "Rating: 3": 3,
        "I would give Rating: 4 or Rating: 5": 0,
        "rating: 0": 0,
        "Rating: 10": 1,
        "Score 5": 0,
        "Rating: 2": 2,
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps([ROW] * len(verdicts)))
    remaining = iter(verdicts)
    found = score_mmhal(file, lambda prompt: next(remaining))
    assert found["rating_by_type"] == list(verdicts.values())
    assert (found["rating"], found["hallucination_rate"], found["unparsed"]) == (1.5, 0.75, 3)


def test_mmhal_asks_for_the_official_scale(results: Path) -> None:
    """Means under another scale are not comparable. Ratings below 3 are those with a hallucination."""
    prompts: list[str] = []
    score_mmhal(results, lambda prompt: prompts.append(prompt) or "Rating: 1")  # type: ignore[func-returns-value]
    levels = dict(re.findall(r"^([0-6]): (.+)$", prompts[0], re.MULTILINE))
    degrees = {"6": "very", "5": "very", "4": "somewhat", "3": "not", "2": "very", "1": "somewhat", "0": "not"}
    assert {rating: level.split()[0] for rating, level in levels.items()} == degrees
    assert {rating for rating, level in levels.items() if level.endswith("with hallucination")} == {"2", "1", "0"}
    assert {rating for rating, level in levels.items() if level.endswith("no hallucination")} == {"6", "5", "4", "3"}
    assert [rating for rating, level in levels.items() if "reasoning" in level] == ["6"]


def test_the_prompt_has_the_fields_and_keeps_their_braces(results: Path) -> None:
    prompts: list[str] = []
    score_mmhal(results, lambda prompt: prompts.append(prompt) or "Rating: 1")  # type: ignore[func-returns-value]
    assert "dog, grass" in prompts[0]
    assert "A {dog}" in prompts[0]
    assert "{question}" in MMHAL


def test_vallu_averages_each_aspect(results: Path) -> None:
    verdicts = iter([FIVE_ASPECTS] * 8 + ["Correctness: 5"])
    found = score_vallu(results, lambda prompt: next(verdicts))
    assert (found["correctness"], found["clarity"], found["unparsed"], found["n"]) == (2, 5, 1, 9)


def test_the_command_retries_and_marks_the_score_as_judged(results: Path, judge: str) -> None:
    line = ("score", "mmhal", "--results", results, "--judge-url", judge, "--judge-model", "strict", "--json")
    process = run_process(*line, "--judge-api-key", "secret")
    assert process.returncode == 0, process.stderr
    [(name, found)] = json.loads(process.stdout).items()
    assert name == "judged by strict"
    assert (found["rating"], found["judged"], found["judge"], found["prompt"]) == (2, True, "strict", "ours")
    # Stored verdicts are used again, so the same command needs no judge.
    unreachable = ("--judge-url", "http://127.0.0.1:9/v1")
    again = run_process(*line, *unreachable, "--judge-api-key", "secret")
    assert (again.returncode, again.stdout) == (0, process.stdout)


def test_a_failure_loses_no_verdict(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([{**ROW, "question": f"What {number}?"} for number in range(5)]))
    prompts: list[str] = []

    def fail_at_the_fourth(prompt: str) -> str:
        prompts.append(prompt)
        if len(prompts) == 4:
            raise EvaluationError("the judge gave no answer")
        return f"Rating: {len(prompts)}"

    with AnswerStore(tmp_path / "verdicts.jsonl") as store, pytest.raises(EvaluationError):
        score_mmhal(file, cache_verdicts("strict", fail_at_the_fourth, store))
    with AnswerStore(tmp_path / "verdicts.jsonl") as store:
        found = score_mmhal(file, cache_verdicts("strict", fail_at_the_fourth, store))
    assert len(prompts) == 6
    assert found["rating"] == (1 + 2 + 3 + 5 + 6) / 5
    with AnswerStore(tmp_path / "verdicts.jsonl") as store:
        score_mmhal(file, cache_verdicts("another", lambda prompt: prompts.append(prompt) or "Rating: 1", store))  # type: ignore[func-returns-value]
    assert len(prompts) == 11


def test_a_missing_field_is_refused_before_any_request(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([ROW, {key: value for key, value in ROW.items() if key != "model_answer"}]))
    prompts: list[str] = []
    with pytest.raises(InputError, match=r"\[1\]\.model_answer.*is missing"):
        score_mmhal(file, lambda prompt: prompts.append(prompt) or "Rating: 1")  # type: ignore[func-returns-value]
    assert prompts == []


def test_an_unreachable_judge_raises_an_error() -> None:
    with pytest.raises(EvaluationError, match="the judge strict at http://127"):
        Judge("http://127.0.0.1:9/v1", "strict")("Hello")


@pytest.mark.parametrize(
    "content",
    [
        b'{"choices": [{"message": {"content": "Rating: \\ud800"}}]}',
        b'{"choices": ' + b"[" * 100_000,
        '{"choices": [{"message": {"content": "Café"}}]}'.encode("latin-1"),
    ],
    ids=["surrogate", "deep", "latin-1"],
)
def test_a_response_that_cannot_be_decoded_is_a_failed_request(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(url: str, **_: object) -> httpx.Response:
        return httpx.Response(200, content=content, request=httpx.Request("POST", url))

    monkeypatch.setattr(httpx, "post", respond)
    with pytest.raises(EvaluationError, match="the judge strict at http://judge gave no answer"):
        Judge("http://judge", "strict")("Hello")


def test_a_row_without_an_answer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([{**ROW, "model_answer": None}]))
    with pytest.raises(InputError, match=r"model_answer.*must be a string, not null"):
        score_mmhal(file, lambda prompt: "Rating: 1")
