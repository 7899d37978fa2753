"""Tests that run the examples and the README's command against a server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness.server_process import ServerProcess

ROOT = Path(__file__).parent.parent
EXPECTED_OUTPUT = {  # patterns that hold for any answer of the model
    "with_openai.py": (
        r"agla \d+ steps changed\n(Is there .+ in the image\? \d\.\d\d\n)+(.+: [+-]\d+\.\d\d\n)+\d+ tokens under vcd"
    ),
    "with_langchain.py": r"\w+.*\ncup=(True|False)",
    "with_litellm.py": r"\w+.*\nagla\+vhr\n\w+",
    "with_curl.sh": r'"onlyseen":\{"strategy":"vcd".*\n\ndata: \[DONE\]',
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ServerProcess() as server:
        yield server.url


def run(command: list[str], url: str) -> str:
    environment = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OMP_NUM_THREADS": "1"}
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_every_example_has_an_expected_output() -> None:
    """The settings in onlyseen.toml have a test of their own."""
    names = {file.name for file in (ROOT / "examples").iterdir()} - {"__pycache__", "onlyseen.toml"}
    assert names == set(EXPECTED_OUTPUT)


@pytest.mark.parametrize("name", EXPECTED_OUTPUT)
def test_example_runs(url: str, name: str) -> None:
    shell = "bash" if name.endswith(".sh") else sys.executable
    assert re.search(EXPECTED_OUTPUT[name], run([shell, f"examples/{name}"], url))


def test_curl_command_of_the_readme_runs(url: str) -> None:
    (command,) = re.findall(r"```sh\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    command = command.replace("http://127.0.0.1:8000", url)
    plain = json.loads(run(["bash", "-c", command.replace('{"strategy": "verify"}', "{}")], url))
    invented = {"dog", "person"}
    assert all(word in plain["choices"][0]["message"]["content"] for word in invented)
    answer = json.loads(run(["bash", "-c", command], url))
    assert not any(word in answer["choices"][0]["message"]["content"] for word in invented)
    claims = answer["onlyseen"]["claims"]
    assert invented <= {claim["text"] for claim in claims if claim["action"] == "dropped"}
    assert {"books", "couch", "cat", "potted plant"} <= {claim["text"] for claim in claims if claim["action"] == "kept"}
