"""A run that is killed again and again ends with the numbers of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.eval.fake_server import FakeServer, Reply, serving
from tests.eval.runs import quality, run, talkative, told

KILLS = 5


def slow(request: dict[str, Any]) -> Reply:
    reply = talkative(request)
    reply.delay = 0.05
    return reply


def test_five_kills_change_no_number(data: Path, tmp_path: Path) -> None:
    arguments = ["--strategies", "plain,agla,vhr", "--temperature", "1", "--seeds", "0,1", "--concurrency", "4"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    store = killed / "answers.jsonl"
    with serving(FakeServer(slow)) as server:
        command = [sys.executable, "-m", "eval", "run", "pope", "--base-url", server.url, "--data", str(data)]
        for _ in range(KILLS):
            before = len(server.asked)
            process = subprocess.Popen([*command, "--out", str(killed), *arguments], stderr=subprocess.DEVNULL)
            while len(server.asked) < before + 40:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        asked = len(server.asked)
        kept = store.read_bytes().count(b"\n")
        assert asked - kept <= KILLS * 4  # those in flight, of four at a time
        with store.open("ab") as file:
            file.write(b'{"key":"torn')  # as a kill in the middle of a write leaves it
        assert run(server, data, killed, *arguments).exit_code == 0
    with serving(FakeServer(talkative)) as server:
        result = run(server, data, whole, *arguments)
    assert result.exit_code == 0, told(result)
    assert quality(killed) == quality(whole)
