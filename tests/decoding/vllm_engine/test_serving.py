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

from tests.server.test_end_to_end import NAME, SCENES, greedy, question, wait_until_ready

STRATEGIES = ("plain", "vcd", "agla", "m3id", "agla+vcd", "agla+vhr", "vdgd+vcd")
REFUSED = ("avisc", "deco", "dola", "pai", "paint", "sid")


class Seen(BaseModel):
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
            assert httpx.get(f"{url}/health", timeout=60).status_code == 200  # it listens, as it has just said
            wait_until_ready(url)
            yield url
        finally:
            handle.send_signal(signal.SIGTERM)
            handle.wait(60)


def asked(url: str, strategy: str, **fields: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}/v1/chat/completions", json=greedy(strategy, **fields), timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_many_at_once_get_what_each_gets_alone(server: str) -> None:
    alone = {strategy: asked(server, strategy) for strategy in STRATEGIES}
    with ThreadPoolExecutor(24) as pool:
        wanted = STRATEGIES * 4
        together = list(pool.map(lambda strategy: asked(server, strategy), wanted))
    for strategy, answer in zip(wanted, together, strict=True):
        assert answer["choices"] == alone[strategy]["choices"]
        assert {**answer["onlyseen"], "timings": None} == {**alone[strategy]["onlyseen"], "timings": None}


def test_the_openai_client_streams_the_same_text(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    fields = greedy("agla", stream=True)
    with client.chat.completions.create(**fields) as chunks:  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == asked(server, "agla")["choices"][0]["message"]["content"]


@pytest.mark.parametrize("strategy", ["plain", "agla+vhr", "vdgd+vcd"])
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_an_answer_can_be_held_to_a_schema(server: str, strategy: str, temperature: float) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    fields = greedy(strategy, max_tokens=64, temperature=temperature, seed=4)
    answer = client.chat.completions.parse(**fields, response_format=Seen)
    assert isinstance(answer.choices[0].message.parsed, Seen)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("strategy", ["plain", "agla+vhr", "vdgd+vcd"])
def test_an_answer_ends_before_a_stop_string(server: str, strategy: str) -> None:
    whole = asked(server, strategy)["choices"][0]["message"]["content"]
    words = whole.split()
    for stop in (words[3], [words[5], words[3]], whole[4:9]):
        (cut,) = asked(server, strategy, stop=stop)["choices"]
        place = min(whole.index(one) for one in ([stop] if isinstance(stop, str) else stop))
        assert (cut["message"]["content"], cut["finish_reason"]) == (whole[:place], "stop")


@pytest.mark.parametrize(("strategy", "rows"), [("plain", 1), ("vcd", 2), ("agla+vcd", 3), ("agla+vhr", 2)])
def test_receipts_add_up(server: str, strategy: str, rows: int) -> None:
    receipt = asked(server, strategy, max_tokens=9, ignore_eos=True)["onlyseen"]
    assert receipt["steps"] == 9
    assert receipt["forward_passes"] == rows * 9 + (2 if "vhr" in strategy else 0)  # the probe's two


@pytest.mark.parametrize("strategy", REFUSED)
def test_what_it_cannot_run_is_refused_for_the_reason_that_it_lists(server: str, strategy: str) -> None:
    listed = {entry["name"]: entry["engines"][0] for entry in httpx.get(f"{server}/v1/strategies").json()["data"]}
    assert not listed[strategy]["runs"]
    assert "vLLM" in listed[strategy]["reason"]
    chosen = {"model": NAME, "decoding": {"strategy": strategy}}
    for fields, param in ((greedy(f"agla+{strategy}"), "model"), (greedy("plain") | chosen, "decoding.strategy")):
        response = httpx.post(f"{server}/v1/chat/completions", json=fields, timeout=60)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported")
        assert f"'{strategy}': it lacks " in error["message"]
        assert "vLLM" in error["message"]


def test_paths_vote(server: str) -> None:
    """Some of them begin with tokens that the model would hardly have said."""
    for scene in SCENES[:2]:
        said = asked(server, "mvp", messages=question(scene, "Is there a dog in the image?"))
        assert said["choices"][0]["message"]["content"] in ("Yes", "No")


def test_several_answers_with_logprobs_and_grounding(server: str) -> None:
    answer = asked(server, "vcd", n=3, temperature=1.0, seed=5, decoding={"grounding": True})
    assert len(answer["choices"]) == 3
    assert all("grounding" in entry for choice in answer["choices"] for entry in choice["logprobs"]["content"])
    assert answer["onlyseen"]["branches"] == ["vcd/noisy", "grounding/blind"]
    again = asked(server, "vcd", n=3, temperature=1.0, seed=5, decoding={"grounding": True})
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["message"]["content"] for choice in again["choices"]] == texts


def test_it_says_what_it_runs_and_counts(server: str) -> None:
    listed = {entry["name"]: entry["engines"][0] for entry in httpx.get(f"{server}/v1/strategies").json()["data"]}
    assert {name for name, runs in listed.items() if not runs["runs"]} == set(REFUSED)
    assert listed["agla"] == {"engine": "vllm", "runs": True, "reason": None}
    metrics = httpx.get(f"{server}/metrics").text
    assert "\nonlyseen_gang_violations_total 0.0\n" in metrics
    assert float(re.findall(r"^onlyseen_gang_tokens_total (\S+)$", metrics, re.MULTILINE)[0]) > 100
    assert f'"{NAME}"' in httpx.get(f"{server}/v1/models").text


def test_a_client_that_goes_takes_its_gang_along(server: str) -> None:
    fields = greedy("agla+vcd", max_tokens=300, ignore_eos=True, stream=True)
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=fields, timeout=60) as response:
        next(response.iter_lines())
    for _ in range(100):
        running = re.findall(r"^onlyseen_num_requests_running\{.*\} (\S+)$", httpx.get(f"{server}/metrics").text, re.M)
        if set(running) == {"0.0"}:
            return
        time.sleep(0.1)
    raise AssertionError("the answer goes on without anybody")


def test_when_the_engine_core_dies_the_server_says_so(server: str) -> None:
    """The last test here."""
    cores = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and is_core(path)]
    assert cores
    for core in cores:
        os.kill(core, signal.SIGKILL)
    for _ in range(100):
        if httpx.get(f"{server}/health").status_code == 503:
            break
        time.sleep(0.1)
    response = httpx.post(f"{server}/v1/chat/completions", json=greedy("vcd"), timeout=60)
    assert response.status_code == 503
    assert httpx.get(f"{server}/health").status_code == httpx.get(f"{server}/ready").status_code == 503


def is_core(process: Path) -> bool:
    """An engine core that this test's server has started: vLLM names its processes."""
    try:
        name = (process / "cmdline").read_bytes()
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        grandparent = int((Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return False
    return b"EngineCore" in name and os.getpid() in (parent, grandparent)
