"""`onlyseen-server` as a process: what it prints, a stranger's strategy, and how it stops."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.server.test_end_to_end import NAME, greedy, wait_until_ready


@dataclass
class Process:
    handle: subprocess.Popen[str]
    url: str
    printed: str

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"


@pytest.fixture
def _only_fake_strategies() -> None:
    """The installed ones, here."""


@pytest.fixture(scope="module")
def process(stranger: dict[str, str]) -> Iterator[Process]:
    command = [sys.executable, "-u", "-m", "server", "--port", "0", "--device", "cpu", "--strategy", "cautious"]
    with subprocess.Popen(command, env=stranger, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as handle:
        assert handle.stdout is not None
        try:
            first = handle.stdout.readline()
            url = re.findall(r"http://[\d.:]+", first)[0]
            wait_until_ready(url)
            printed = ""
            while "\nJSON\n" not in printed:
                printed += handle.stdout.readline()
            yield Process(handle, url, printed)
        finally:
            handle.kill()


def test_a_strangers_strategy_is_served(process: Process) -> None:
    fields = greedy("cautious+vhr", decoding={"cautious": {"doubt": 1.0}})
    told = httpx.post(process.chat, json=fields, timeout=60).json()["onlyseen"]
    assert (told["strategy"], told["branches"]) == ("cautious+vhr", ["cautious/blind"])
    assert told["parameters"]["cautious"] == {"doubt": 1.0, "beta": 0.1}
    assert f"{NAME}:cautious" in httpx.get(f"{process.url}/v1/models").text
    assert "doubt" in httpx.get(f"{process.url}/openapi.json").text


def test_it_can_be_the_default(process: Process) -> None:
    told = httpx.post(process.chat, json=greedy("plain") | {"model": NAME}, timeout=60).json()["onlyseen"]
    assert told["strategy"] == "cautious"


def test_what_is_printed_can_be_pasted(process: Process) -> None:
    ran = subprocess.run(["bash", "-c", process.printed.partition("Try:")[2]], capture_output=True, text=True)
    assert '"chat.completion"' in ran.stdout, ran.stderr


def test_a_running_stream_ends_before_the_server_does(process: Process) -> None:
    """The last test here: it stops the server."""
    fields = greedy("vcd", max_tokens=120, ignore_eos=True, stream=True)
    with httpx.stream("POST", process.chat, json=fields, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.handle.send_signal(signal.SIGTERM)
        while httpx.get(f"{process.url}/ready").status_code == 200:
            pass
        late = httpx.post(process.chat, json=greedy("plain"), timeout=60)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert late.json()["error"]["code"] == "unavailable"
        assert httpx.get(f"{process.url}/health").status_code == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.handle.wait(timeout=35) == 0
