"""`onlyseen-server --engine vllm` as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.server.harness import NAME, SCENES, build_messages, greedy_request, wait_until_ready

STRATEGIES = (
    "plain",
    "vcd",
    "agla",
    "m3id",
    "agla+vcd",
    "agla+vhr",
    "vdgd+vcd",
    "dola",
    "deco+vcd",
    "pai",
    "avisc",
    "sid",
    "paint",
)


class CountedObject(BaseModel):
    object: Literal["cat", "dog", "person"]
    count: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    options = ("--port", "0", "--engine", "vllm", "--context", "512", "--max-rows", "16", "--cache-gb", "0.2")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-m", "server", *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as handle:
        assert handle.stdout is not None
        try:
            url = re.findall(r"http://[\d.:]+", handle.stdout.readline())[0]
            assert httpx.get(f"{url}/health", timeout=60).status_code == 200  # it listens
            wait_until_ready(url)
            yield url
        finally:
            handle.send_signal(signal.SIGTERM)
            handle.wait(60)


def complete(url: str, strategy: str, **fields: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}/v1/chat/completions", json=greedy_request(strategy, **fields), timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_concurrent_requests_equal_single_requests(server: str) -> None:
    alone = {strategy: complete(server, strategy) for strategy in STRATEGIES}
    with ThreadPoolExecutor(24) as pool:
        strategies = STRATEGIES * 4
        together = list(pool.map(lambda strategy: complete(server, strategy), strategies))
    for strategy, answer in zip(strategies, together, strict=True):
        assert answer["choices"] == alone[strategy]["choices"]
        assert {**answer["onlyseen"], "timings": None} == {**alone[strategy]["onlyseen"], "timings": None}


def test_openai_client_streams_the_same_text(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    fields = greedy_request("agla", stream=True)
    with client.chat.completions.create(**fields) as chunks:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == complete(server, "agla")["choices"][0]["message"]["content"]


@pytest.mark.parametrize("strategy", ["plain", "agla+vhr", "vdgd+vcd"])
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_answer_follows_a_schema(server: str, strategy: str, temperature: float) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    fields = greedy_request(strategy, max_tokens=64, temperature=temperature, seed=4)
    answer = client.chat.completions.parse(**fields, response_format=CountedObject)
    assert isinstance(answer.choices[0].message.parsed, CountedObject)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("strategy", ["plain", "agla+vhr", "vdgd+vcd"])
def test_answer_ends_before_a_stop_string(server: str, strategy: str) -> None:
    whole = complete(server, strategy)["choices"][0]["message"]["content"]
    words = whole.split()
    for stop in (words[3], [words[5], words[3]], whole[4:9]):
        (cut,) = complete(server, strategy, stop=stop)["choices"]
        end = min(whole.index(each) for each in ([stop] if isinstance(stop, str) else stop))
        assert (cut["message"]["content"], cut["finish_reason"]) == (whole[:end], "stop")


@pytest.mark.parametrize(("strategy", "rows"), [("plain", 1), ("vcd", 2), ("agla+vcd", 3), ("agla+vhr", 2)])
def test_receipt_counts_steps_and_forward_passes(server: str, strategy: str, rows: int) -> None:
    receipt = complete(server, strategy, max_tokens=9, ignore_eos=True)["onlyseen"]
    assert receipt["steps"] == 9
    assert receipt["forward_passes"] == rows * 9 + (2 if "vhr" in strategy else 0)  # the probe's two


def test_mvp_votes(server: str) -> None:
    """Some paths begin with unlikely tokens."""
    for scene in SCENES[:2]:
        answer = complete(server, "mvp", messages=build_messages(scene, "Is there a dog in the image?"))
        assert answer["choices"][0]["message"]["content"] in ("Yes", "No")


def test_several_answers_with_logprobs_and_grounding(server: str) -> None:
    answer = complete(server, "vcd", n=3, temperature=1.0, seed=5, decoding={"grounding": True})
    assert len(answer["choices"]) == 3
    assert all("grounding" in entry for choice in answer["choices"] for entry in choice["logprobs"]["content"])
    assert answer["onlyseen"]["branches"] == ["vcd/noisy", "grounding/blind"]
    again = complete(server, "vcd", n=3, temperature=1.0, seed=5, decoding={"grounding": True})
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["message"]["content"] for choice in again["choices"]] == texts


def test_strategies_and_metrics_describe_the_engine(server: str) -> None:
    listed = {entry["name"]: entry["engines"][0] for entry in httpx.get(f"{server}/v1/strategies").json()["data"]}
    refused = {name: runs["reason"] for name, runs in listed.items() if not runs["runs"]}
    assert "not what enters it" in refused.pop("rudder")
    assert refused.keys() == {"adaiat", "steer", "vti"}  # the server has no files for them
    assert all("start it with" in reason for reason in refused.values())
    assert listed["agla"] == {"engine": "vllm", "runs": True, "reason": None}
    metrics = httpx.get(f"{server}/metrics").text
    assert "\nonlyseen_gang_violations_total 0.0\n" in metrics
    assert float(re.findall(r"^onlyseen_gang_tokens_total (\S+)$", metrics, re.MULTILINE)[0]) > 100
    assert f'"{NAME}"' in httpx.get(f"{server}/v1/models").text


def test_disconnected_client_aborts_its_gang(server: str) -> None:
    fields = greedy_request("agla+vcd", max_tokens=300, ignore_eos=True, stream=True)
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=fields, timeout=60) as response:
        next(response.iter_lines())
    for _ in range(100):
        running = re.findall(r"^onlyseen_num_requests_running\{.*\} (\S+)$", httpx.get(f"{server}/metrics").text, re.M)
        if set(running) == {"0.0"}:
            return
        time.sleep(0.1)
    raise AssertionError("the answer continues without a client")


def test_dead_engine_core_makes_the_server_unhealthy(server: str) -> None:
    """This must be the last test of the file."""
    cores = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and is_engine_core(path)]
    assert cores
    for core in cores:
        os.kill(core, signal.SIGKILL)
    for _ in range(100):
        if httpx.get(f"{server}/health").status_code == 503:
            break
        time.sleep(0.1)
    response = httpx.post(f"{server}/v1/chat/completions", json=greedy_request("vcd"), timeout=60)
    assert response.status_code == 503
    assert httpx.get(f"{server}/health").status_code == httpx.get(f"{server}/ready").status_code == 503


def is_engine_core(process: Path) -> bool:
    """Return whether the process is an engine core of this test's server, and not one of this process."""
    try:
        name = (process / "cmdline").read_bytes()
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        grandparent = int((Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return False
    return b"EngineCore" in name and grandparent == os.getpid()
