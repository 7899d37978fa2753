"""Runs that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.eval.cli_driver import invoke_run, output_of, read_results_without_costs, reply_by_hash
from tests.eval.fake_server import ScriptedReply, ScriptedServer, start_server

KILLS = 5


def reply_slowly(request: dict[str, Any]) -> ScriptedReply:
    reply = reply_by_hash(request)
    reply.delay = 0.05
    return reply


def test_five_kills_change_no_number(data: Path, tmp_path: Path) -> None:
    arguments = ["--strategies", "plain,agla,vhr", "--temperature", "1", "--seeds", "0,1", "--concurrency", "4"]
    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    store = killed / "answers.jsonl"
    with start_server(ScriptedServer(reply_slowly)) as server:
        command = [sys.executable, "-m", "eval", "run", "pope", "--base-url", server.url, "--data", str(data)]
        for _ in range(KILLS):
            before = len(server.requests)
            process = subprocess.Popen([*command, "--out", str(killed), *arguments], stderr=subprocess.DEVNULL)
            while len(server.requests) < before + 40:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        sent = len(server.requests)
        stored = store.read_bytes().count(b"\n")
        assert sent - stored <= KILLS * 4  # requests in flight, at most four
        with store.open("ab") as file:
            file.write(b'{"key":"incomplete')  # a write that was interrupted
        assert invoke_run(server, data, killed, *arguments).exit_code == 0
    with start_server(ScriptedServer(reply_by_hash)) as server:
        result = invoke_run(server, data, uninterrupted, *arguments)
    assert result.exit_code == 0, output_of(result)
    assert read_results_without_costs(killed) == read_results_without_costs(uninterrupted)
