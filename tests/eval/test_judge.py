"""Judged scores, with a judge that says what it is told to."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from eval.errors import EvaluationError, InputError
from eval.judge import MMHAL, Judge, kept, mmhal, vallu
from eval.store import Store
from tests.eval.command import command

ROW = {"question": "What?", "image_content": ["dog", "grass"], "gt_answer": "A {dog}", "model_answer": "A cat"}
FIVE = "Helpfulness: 4\n**Clarity**: 5\nCorrectness: 2\nDepth: 3\nEngagement: 1"


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
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.headers["authorization"] == "Bearer secret"
            assert "A cat" in asked["messages"][0]["content"]
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


def test_mmhal(results: Path) -> None:
    """Neither no rating nor two ratings are one; both count as 0, as in the official script."""
    verdicts = iter(["Rating: 6", "rating: 3", "Rating: 2", "none", "Rating: 1 or rating: 2", *["Rating: 5"] * 4])
    found = mmhal(results, lambda prompt: next(verdicts))
    assert found["judged"] is True
    assert (found["rating"], found["hallucination_rate"], found["unparsed"]) == (31 / 9, 3 / 9, 2)
    assert found["rating_by_type"] == [5.5, 3, 2, 0, 0, 5, 5, 5]


def test_the_prompt_holds_the_fields_and_braces_in_them_stay(results: Path) -> None:
    asked: list[str] = []
    mmhal(results, lambda prompt: asked.append(prompt) or "Rating: 1")  # type: ignore[func-returns-value]
    assert "dog, grass" in asked[0]
    assert "A {dog}" in asked[0]
    assert "{question}" in MMHAL


def test_vallu(results: Path) -> None:
    verdicts = iter([FIVE] * 8 + ["Correctness: 5"])
    found = vallu(results, lambda prompt: next(verdicts))
    assert (found["correctness"], found["clarity"], found["unparsed"], found["n"]) == (2, 5, 1, 9)


def test_the_command_retries_and_marks_the_score_as_judged(results: Path, judge: str) -> None:
    line = ("score", "mmhal", "--results", results, "--judge-url", judge, "--judge-model", "strict", "--json")
    done = command(*line, "--judge-api-key", "secret")
    assert done.returncode == 0, done.stderr
    [(name, found)] = json.loads(done.stdout).items()
    assert name == "judged by strict"
    assert (found["rating"], found["judged"], found["judge"], found["prompt"]) == (2, True, "strict", "ours")
    # What was judged stays, so that the same command needs the judge no more.
    gone = ("--judge-url", "http://127.0.0.1:9/v1")
    again = command(*line, *gone, "--judge-api-key", "secret")
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_a_failure_loses_no_verdict(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([{**ROW, "question": f"What {number}?"} for number in range(5)]))
    asked: list[str] = []

    def fails_at_the_fourth(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 4:
            raise EvaluationError("the judge gave no answer")
        return f"Rating: {len(asked)}"

    with Store(tmp_path / "verdicts.jsonl") as store, pytest.raises(EvaluationError):
        mmhal(file, kept("strict", fails_at_the_fourth, store))
    with Store(tmp_path / "verdicts.jsonl") as store:
        found = mmhal(file, kept("strict", fails_at_the_fourth, store))
    assert len(asked) == 6
    assert found["rating"] == (1 + 2 + 3 + 5 + 6) / 5
    with Store(tmp_path / "verdicts.jsonl") as store:
        mmhal(file, kept("another", lambda prompt: asked.append(prompt) or "Rating: 1", store))  # type: ignore[func-returns-value]
    assert len(asked) == 11


def test_nothing_is_asked_while_a_row_lacks_a_field(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([ROW, {key: value for key, value in ROW.items() if key != "model_answer"}]))
    asked: list[str] = []
    with pytest.raises(InputError, match=r"\[1\]\.model_answer.*is missing"):
        mmhal(file, lambda prompt: asked.append(prompt) or "Rating: 1")  # type: ignore[func-returns-value]
    assert asked == []


def test_a_judge_that_is_not_there() -> None:
    with pytest.raises(EvaluationError, match="the judge strict at http://127"):
        Judge("http://127.0.0.1:9/v1", "strict")("Hello")


def test_a_row_without_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([{**ROW, "model_answer": None}]))
    with pytest.raises(InputError, match=r"model_answer.*must be a text, not null"):
        mmhal(file, lambda prompt: "Rating: 1")
