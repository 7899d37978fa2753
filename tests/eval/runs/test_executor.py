"""Execution of a plan: concurrency, and a server that goes down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.eval.cli_driver import invoke_run, output_of, reply_by_hash
from tests.eval.fake_server import ScriptedReply, ScriptedServer, start_server


def test_a_server_that_goes_down_aborts_the_run_and_loses_no_answer(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def script(request: dict[str, Any]) -> ScriptedReply:
        return ScriptedReply("out of memory", status=500) if len(server.requests) > 20 else reply_by_hash(request)

    with start_server(ScriptedServer(script)) as server:
        result = invoke_run(server, data, out, "--concurrency", "2")
        assert "too many failures" in output_of(result)
        assert "20 answers are stored" in output_of(result)
        assert len(server.requests) <= 20 + 8
    with start_server(ScriptedServer(reply_by_hash)) as server:
        assert invoke_run(server, data, out).exit_code == 0
        assert len(server.requests) == 60 - 20
    unreachable = invoke_run(server, data, out, "--limit", "7")
    assert "Is the server running?" in output_of(unreachable)


def test_concurrency_limits_the_requests_in_flight(data: Path, tmp_path: Path) -> None:
    with start_server(ScriptedServer(lambda request: ScriptedReply("Yes", delay=0.01))) as server:
        invoke_run(server, data, tmp_path / "run", "--concurrency", "3")
    assert server.max_in_flight == 3
