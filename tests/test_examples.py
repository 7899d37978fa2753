"""What the documents tell a newcomer to run, run as it stands against a server of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.process import Server

ROOT = Path(__file__).parent.parent
SHOWN = {  # what must be printed, whatever the model says
    "with_openai.py": r"agla \d+ steps changed\n(.+: [+-]\d+\.\d\d\n)+\d+ tokens under vcd",
    "with_langchain.py": r"\w+.*\ncup=(True|False)",
    "with_litellm.py": r"\w+.*\nagla\+vhr\n\w+",
    "with_curl.sh": r'"onlyseen":\{"strategy":"vcd".*\n\ndata: \[DONE\]',
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Server() as server:
        yield server.url


def ran(command: list[str], url: str) -> str:
    environment = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert {file.name for file in (ROOT / "examples").iterdir()} - {"__pycache__"} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example(url: str, name: str) -> None:
    shell = "bash" if name.endswith(".sh") else sys.executable
    assert re.search(SHOWN[name], ran([shell, f"examples/{name}"], url))


def test_the_curl_command_of_the_readme(url: str) -> None:
    (command,) = re.findall(r"```sh\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    answer = json.loads(ran(["bash", "-c", command.replace("http://127.0.0.1:8000", url)], url))
    assert answer["choices"][0]["message"]["content"]
    assert answer["onlyseen"]["branches"] == ["agla/local"]
