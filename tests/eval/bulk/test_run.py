"""Whole jobs against scripted servers: killed, refused, restarted, and read by other libraries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from eval.bulk.cli import app
from tests.eval.bulk.pictures import answer, draw, read_rows, write_pictures
from tests.eval.cli_driver import ROOT, output_of
from tests.eval.fake_server import ScriptedReply, ScriptedServer, image_of, start_server


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with start_server(ScriptedServer(answer)) as running:
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of eight pictures, of which the server refuses one, and a file that is no picture."""
    folder = write_pictures(tmp_path / "in", 8)
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def build_arguments(server: ScriptedServer, pictures: Path, out: Path, *arguments: str) -> list[str]:
    prompt = () if "--prompt" in arguments else ("--prompt", "Describe.")
    urls = () if "--base-url" in arguments else ("--base-url", server.url)
    formatted = () if "--format" in arguments else ("--format", "jsonl")
    return ["run", str(pictures), "--out", str(out), *prompt, *urls, *formatted, *arguments]


def run_job(server: ScriptedServer, pictures: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, build_arguments(server, pictures, out, *arguments))


def test_job_has_a_row_for_every_item(server: ScriptedServer, pictures: Path, tmp_path: Path) -> None:
    result = run_job(server, pictures, tmp_path / "out", "--strategy", "agla:alpha=1", "--json")
    assert result.exit_code == 0, output_of(result)
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    assert len(rows) == 9
    assert "too small" in rows["0003.png"]["error"]
    assert "no known format" in rows["bad.png"]["error"]
    good = rows["0000.png"]
    assert good["answer"].startswith("a cat ")
    assert [claim["start"] for claim in good["claims"]] == [0, None]
    assert (good["strategy"], good["finish_reason"], good["forward_passes"]) == ("agla:alpha=1", "stop", 8)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["complete"]
    assert summary["totals"] == {"rows": 9, "failures": 2, "tokens": 28, "claims": 14, "struck": 7, "parts": 1}
    assert '"complete": true' in result.stdout


def test_second_run_asks_only_what_is_missing(server: ScriptedServer, pictures: Path, tmp_path: Path) -> None:
    run_job(server, pictures, tmp_path / "out", "--limit", "4")
    assert len(server.requests) == 4
    first = read_rows(tmp_path / "out")
    (pictures / "9999.png").write_bytes(draw(99))
    result = run_job(server, pictures, tmp_path / "out", "--prompt", "Describe.", "--prompt", "Name it.")
    assert result.exit_code == 0, output_of(result)
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 2 * 10
    assert [row for row in rows if row in first] == first
    assert len(server.requests) == 4 + 2 * 9 - 4


def test_sampled_rows_have_seeds_that_do_not_depend_on_the_order(
    server: ScriptedServer, pictures: Path, tmp_path: Path
) -> None:
    sampled = ("--temperature", "1", "--seed", "5")
    run_job(server, pictures, tmp_path / "whole", *sampled)
    run_job(server, pictures, tmp_path / "parts", *sampled, "--limit", "3", "--concurrency", "1")
    run_job(server, pictures, tmp_path / "parts", *sampled)
    rows = read_rows(tmp_path / "whole")
    assert rows == read_rows(tmp_path / "parts")
    assert len({row["seed"] for row in rows if row["error"] is None}) == 7


def test_killed_job_gives_the_rows_of_a_job_left_alone(tmp_path: Path) -> None:
    def answer_slowly(request: dict[str, object]) -> ScriptedReply:
        reply = answer(request)
        reply.delay = 0.01
        return reply

    pictures = write_pictures(tmp_path / "in", 150)
    with start_server(ScriptedServer(answer_slowly)) as server:
        assert run_job(server, pictures, tmp_path / "alone").exit_code == 0
        arguments = build_arguments(server, pictures, tmp_path / "killed", "--part-rows", "10", "--concurrency", "2")
        command = [sys.executable, "-m", "eval.bulk", *arguments]
        for kill_at in (5, 40, 95):
            before = len(server.requests)
            with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
                deadline = time.monotonic() + 60
                while len(server.requests) < before + kill_at // 2 and process.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
                os.kill(process.pid, signal.SIGKILL)
        asked = len(server.requests) - 150
        assert 0 < asked < 150
        assert run_job(server, pictures, tmp_path / "killed", "--part-rows", "10").exit_code == 0
        # A killed run loses the items in flight: at most two requests and the rows that wait for the disk.
        assert len(server.requests) - 150 < 150 + 3 * 8
    assert read_rows(tmp_path / "killed") == read_rows(tmp_path / "alone")


def test_pictures_are_spread_over_servers_and_keep_theirs(pictures: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(answer)) as one, start_server(ScriptedServer(answer)) as other:
        urls = ("--base-url", one.url, "--base-url", other.url)
        prompts = ("--prompt", "Describe.", "--prompt", "Name it.", "--prompt", "Count.")
        write_pictures(pictures, 40)
        result = run_job(one, pictures, tmp_path / "out", *urls, *prompts, "--concurrency", "200")
        assert result.exit_code == 0, output_of(result)
        seen = [{image_of(request) for request in server.requests} for server in (one, other)]
        assert len(one.requests) + len(other.requests) == 120
        assert min(map(len, seen)) > 5
        assert not seen[0] & seen[1]


def test_server_that_restarts_loses_no_rows(pictures: Path, tmp_path: Path) -> None:
    write_pictures(pictures, 60)
    fails = iter([False] * 10 + [True] * 12)

    def answer_with_outage(request: dict[str, object]) -> ScriptedReply:
        if next(fails, False):
            return ScriptedReply("The engine is loading.", status=503)
        return answer(request)

    with start_server(ScriptedServer(answer_with_outage)) as server:
        result = run_job(server, pictures, tmp_path / "out", "--concurrency", "4", "--retries", "0")
    assert result.exit_code == 0, output_of(result)
    assert [row["id"] for row in read_rows(tmp_path / "out") if row["error"]] != []
    assert {row["id"] for row in read_rows(tmp_path / "out") if row["error"]} == {"0003.png", "bad.png"}


def test_picture_that_always_fails_is_a_row_with_an_error(pictures: Path, tmp_path: Path) -> None:
    def fail_on_one(request: dict[str, object]) -> ScriptedReply:
        if draw_url(5) == image_of(request):
            return ScriptedReply("It broke.", status=500)
        return answer(request)

    with start_server(ScriptedServer(fail_on_one)) as server:
        result = run_job(server, pictures, tmp_path / "out", "--retries", "1")
    assert result.exit_code == 0, output_of(result)
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    assert "It broke." in rows["0005.png"]["error"]
    assert len(rows) == 9


def draw_url(number: int) -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(draw(number)).decode()


def test_absent_servers_end_the_job_after_patience(
    server: ScriptedServer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = lambda _: ScriptedReply("Still loading.", status=503)
    result = run_job(server, pictures, tmp_path / "out", "--patience", "1")
    assert result.exit_code != 0
    assert "no answer for 1 s" in output_of(result)


def test_max_failures_ends_the_job(server: ScriptedServer, pictures: Path, tmp_path: Path) -> None:
    result = run_job(server, pictures, tmp_path / "out", "--max-failures", "1", "--concurrency", "1")
    assert result.exit_code != 0
    assert "--max-failures 1" in output_of(result)
    assert len(read_rows(tmp_path / "out")) >= 2  # they are readable, although the job has ended
    assert not json.loads((tmp_path / "out" / "summary.json").read_text())["complete"]
    result = run_job(server, pictures, tmp_path / "out", "--max-failures", "2")
    assert result.exit_code == 0, output_of(result)


@pytest.mark.parametrize("status", [401, 404])
def test_refusal_that_concerns_all_requests_ends_the_job(
    server: ScriptedServer, pictures: Path, tmp_path: Path, status: int
) -> None:
    server.script = lambda _: ScriptedReply("No.", status=status)
    result = run_job(server, pictures, tmp_path / "out")
    assert f"status {status}" in output_of(result)
    assert result.exit_code != 0
    assert [row["id"] for row in read_rows(tmp_path / "out") if row["id"] != "bad.png"] == []


def test_refused_parameter_of_the_strategy_ends_the_job(server: ScriptedServer, pictures: Path, tmp_path: Path) -> None:
    error = {"message": "decoding.vcd.alpha: Input should be a valid number.", "param": "decoding.vcd.alpha"}
    server.script = lambda _: ScriptedReply(status=400, raw=json.dumps({"error": error}).encode())
    result = run_job(server, pictures, tmp_path / "out", "--strategy", "vcd:alpha=much")
    assert result.exit_code != 0
    assert "decoding.vcd.alpha" in output_of(result)
    assert [row["id"] for row in read_rows(tmp_path / "out") if row["id"] != "bad.png"] == []


def test_unknown_strategy_ends_the_job_before_it_begins(server: ScriptedServer, pictures: Path, tmp_path: Path) -> None:
    result = run_job(server, pictures, tmp_path / "out", "--strategy", "none")
    assert "no strategy 'none'" in output_of(result)
    assert not (tmp_path / "out").exists()


def test_servers_with_other_weights_are_refused(pictures: Path, tmp_path: Path) -> None:
    with (
        start_server(ScriptedServer(answer, fingerprint="a")) as one,
        start_server(ScriptedServer(answer, fingerprint="b")) as other,
    ):
        result = run_job(one, pictures, tmp_path / "out", "--base-url", one.url, "--base-url", other.url)
    assert "differ in weights" in output_of(result)


def test_output_inside_of_the_input_is_refused(server: ScriptedServer, pictures: Path) -> None:
    assert "inside of the input" in output_of(run_job(server, pictures, pictures / "out"))


def test_parquet_is_read_by_pandas_polars_and_datasets(
    server: ScriptedServer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    polars, datasets = pytest.importorskip("polars"), pytest.importorskip("datasets")
    import pandas as pd

    result = run_job(server, pictures, tmp_path / "out", "--format", "parquet", "--part-rows", "4")
    assert result.exit_code == 0, output_of(result)
    folder = tmp_path / "out" / "rows"
    expected = sorted(row["key"] for row in read_rows(tmp_path / "out"))
    frame = pd.read_parquet(folder)
    assert sorted(frame["key"]) == expected
    assert {claim["text"] for claims in frame["claims"].dropna() for claim in claims} == {"a cat", "a dog"}
    assert sorted(polars.read_parquet(folder / "*.parquet")["key"]) == expected
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=cache)
    assert sorted(loaded["key"]) == expected


def test_lines_are_read_by_pandas(server: ScriptedServer, pictures: Path, tmp_path: Path) -> None:
    import pandas as pd

    run_job(server, pictures, tmp_path / "out")
    frame = pd.read_json(tmp_path / "out" / "rows" / "part-000000.jsonl", lines=True)
    assert sorted(frame["key"]) == sorted(row["key"] for row in read_rows(tmp_path / "out"))
