"""`onlyseen-server` as a process: its output, a plugin strategy, and its shutdown."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil
import pytest

from tests.server.harness import NAME, greedy_request, wait_until_ready

# llguidance would compile it for minutes.
ENDLESS_SCHEMA = {
    "name": "text",
    "schema": {"allOf": [{"type": "string", "pattern": f".*a{number}.*"} for number in range(40)]},
}


@dataclass
class Process:
    handle: subprocess.Popen[str]
    url: str
    printed: str

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"


@pytest.fixture
def _use_fake_strategies() -> None:
    """Use the installed strategies in this module."""


@pytest.fixture(scope="module")
def process(plugin_env: dict[str, str]) -> Iterator[Process]:
    command = [sys.executable, "-u", "-m", "server", "--port", "0", "--device", "cpu", "--strategy", "cautious"]
    with subprocess.Popen(command, env=plugin_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as handle:
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


def test_plugin_strategy_is_served(process: Process) -> None:
    fields = greedy_request("cautious+vhr", decoding={"cautious": {"doubt": 1.0}})
    receipt = httpx.post(process.chat, json=fields, timeout=60).json()["onlyseen"]
    assert (receipt["strategy"], receipt["branches"]) == ("cautious+vhr", ["cautious/blind"])
    assert receipt["parameters"]["cautious"] == {"doubt": 1.0, "beta": 0.1}
    assert f"{NAME}:cautious" in httpx.get(f"{process.url}/v1/models").text
    assert "doubt" in httpx.get(f"{process.url}/openapi.json").text


def test_plugin_strategy_can_be_the_default(process: Process) -> None:
    receipt = httpx.post(process.chat, json=greedy_request("plain") | {"model": NAME}, timeout=60).json()["onlyseen"]
    assert receipt["strategy"] == "cautious"


def test_printed_example_runs_in_a_shell(process: Process) -> None:
    shell = subprocess.run(["bash", "-c", process.printed.partition("Try:")[2]], capture_output=True, text=True)
    assert '"chat.completion"' in shell.stdout, shell.stderr


def test_running_stream_finishes_before_the_process_exits(process: Process) -> None:
    """Must be the last test of this module, because it stops the server."""
    fields = greedy_request("vcd", max_tokens=120, ignore_eos=True, stream=True)
    hostile = greedy_request("plain", response_format={"type": "json_schema", "json_schema": ENDLESS_SCHEMA})
    with (
        ThreadPoolExecutor(1) as thread,
        httpx.stream("POST", process.chat, json=fields, timeout=60) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        checked = thread.submit(httpx.post, process.chat, json=hostile, timeout=60)
        while not psutil.Process(process.handle.pid).children():  # the check of the schema has not started
            time.sleep(0.01)
        process.handle.send_signal(signal.SIGTERM)
        while httpx.get(f"{process.url}/ready").status_code == 200:
            pass
        late = httpx.post(process.chat, json=greedy_request("plain"), timeout=60)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert late.json()["error"]["code"] == "unavailable"
        assert httpx.get(f"{process.url}/health").status_code == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert checked.result().json()["error"]["code"] == "invalid_schema"
    assert process.handle.wait(timeout=35) == 0
