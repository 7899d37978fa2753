"""What is counted, what is logged, and how long a request may take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.typing import EventDict

from tests.server.conftest import Serve, Served, data_url, seeing
from tests.server.fakes import FakeEngine

SEEN = [{"role": "user", "content": [{"type": "input_image", "image_url": data_url()}]}]


async def counted(served: Served) -> dict[str, float]:
    response = await served.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = [line.rpartition(" ") for line in response.text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("onlyseen_"): float(value) for name, _, value in lines}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_counted_by_its_strategy(served: Served, stream: bool, logged: list[EventDict]) -> None:
    assert (await served.chat(model="tiny:blind", messages=seeing(), stream=stream)).status_code == 200
    told = await counted(served)
    label = '{strategy="blind"}'
    assert told[f"generation_tokens_total{label}"] == 5
    assert told[f"prompt_tokens_total{label}"] == 7
    assert told[f"forward_passes_total{label}"] == 10
    assert told[f"inter_token_latency_seconds_count{label}"] == 4
    assert told[f"time_to_first_token_seconds_count{label}"] == told[f"e2e_request_latency_seconds_count{label}"] == 1
    assert told[f"num_requests_running{label}"] == told[f"num_requests_waiting{label}"] == 0
    assert told["image_cache_misses"] == 1
    receipts = [entry for entry in logged if entry["event"] == "receipt"]
    assert [(entry["request_id"], entry["forward_passes"]) for entry in receipts] == [("test", 10)]


@pytest.mark.parametrize("fails_after", [0, 2])
async def test_a_failure_runs_no_longer(serve: Serve, fails_after: int) -> None:
    served = await serve(FakeEngine(failure=ZeroDivisionError(), fails_after=fails_after))
    assert (await served.chat()).status_code == 500
    told = await counted(served)
    assert told['num_requests_running{strategy="plain"}'] == told['num_requests_waiting{strategy="plain"}'] == 0


async def test_what_the_engine_counts_is_told(served: Served) -> None:
    served.engine.counted = {"gang_violations": 3}
    assert (await counted(served))["gang_violations_total"] == 3
    served.engine.alive = False  # it is not asked any more
    served.engine.counted = {"gang_violations": 4}
    assert (await counted(served))["gang_violations_total"] == 3


async def test_labels_are_bounded(served: Served) -> None:
    for number in range(100):
        served.app.state.service.metrics.watch(f"made-up-{number}").over()
    assert len([name for name in await counted(served) if name.startswith("num_requests_waiting")]) == 65


async def test_version(served: Served) -> None:
    assert (await served.http.get("/version")).json()["version"]


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"model": "tiny:vote"}])
async def test_time_is_up_before_the_first_token(serve: Serve, fields: dict[str, object]) -> None:
    served = await serve(FakeEngine(pause=5), request_timeout=0.05)
    response = await served.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (504, "server_error", "timeout")
    assert served.engine.running == 0


async def test_time_is_up_in_a_stream(serve: Serve) -> None:
    served = await serve(FakeEngine(words=["word "] * 1000, pause=0.01), request_timeout=0.2)
    response = await served.chat(stream=True)
    *_, event, data = response.text.strip().splitlines()
    assert (response.status_code, event) == (200, "event: error")
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "timeout"
    assert served.engine.running == 0
    assert (await served.chat()).status_code == 504


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/models"])
async def test_browsers_are_told_not_to_guess(served: Served, path: str) -> None:
    headers = (await served.http.get(path)).headers
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")


async def test_a_request_is_no_larger_than_the_engine(serve: Serve) -> None:
    served = await serve(max_rows=4)
    assert (await served.chat(model="tiny:blind", messages=seeing(), n=2)).status_code == 200
    response = await served.chat(model="tiny:blind", messages=seeing(), n=3)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "too_many_sequences", "n")


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
        ("chat/completions", {"model": "tiny:blind", "messages": seeing()}, "model"),
        ("chat/completions", {"messages": seeing(), "decoding": {"strategy": "blind"}}, "decoding.strategy"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("responses", {"model": "tiny:blind", "input": SEEN}, "model"),
    ],
)
async def test_what_makes_a_request_too_large_is_named(
    serve: Serve, url: str, fields: dict[str, Any], param: str
) -> None:
    served = await serve(max_rows=1)
    response = await served.http.post(f"/v1/{url}", json={"model": "tiny"} | fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "too_many_sequences", param)
