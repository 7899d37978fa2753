"""Metrics and the receipt in the log."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from prometheus_client import CollectorRegistry
from structlog.typing import EventDict

from server.observability import metrics
from tests.server.conftest import FakeServer, StartServer, image_messages
from tests.server.fakes import FakeEngine


async def read_metrics(server: FakeServer) -> dict[str, float]:
    response = await server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = [line.rpartition(" ") for line in response.text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("onlyseen_"): float(value) for name, _, value in lines}


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_is_counted_by_its_strategy(
    server: FakeServer, stream: bool, log_entries: list[EventDict]
) -> None:
    assert (await server.chat(model="tiny:blind", messages=image_messages(), stream=stream)).status_code == 200
    values = await read_metrics(server)
    label = '{strategy="blind"}'
    assert values[f"generation_tokens_total{label}"] == 5
    assert values[f"prompt_tokens_total{label}"] == 7
    assert values[f"forward_passes_total{label}"] == 10
    assert values[f"inter_token_latency_seconds_count{label}"] == 4
    assert (
        values[f"time_to_first_token_seconds_count{label}"] == values[f"e2e_request_latency_seconds_count{label}"] == 1
    )
    assert values[f"num_requests_running{label}"] == values[f"num_requests_waiting{label}"] == 0
    assert values["image_cache_misses"] == 1
    receipts = [entry for entry in log_entries if entry["event"] == "receipt"]
    assert [(entry["request_id"], entry["forward_passes"]) for entry in receipts] == [("test", 10)]


@pytest.mark.parametrize("fails_after", [0, 2])
async def test_failed_request_leaves_the_gauges_at_zero(start_server: StartServer, fails_after: int) -> None:
    server = await start_server(FakeEngine(failure=ZeroDivisionError(), fails_after=fails_after))
    assert (await server.chat()).status_code == 500
    values = await read_metrics(server)
    assert values['num_requests_running{strategy="plain"}'] == values['num_requests_waiting{strategy="plain"}'] == 0


async def test_engine_counters_are_shown(server: FakeServer) -> None:
    server.engine.counter_values = {"gang_violations": 3}
    assert (await read_metrics(server))["gang_violations_total"] == 3
    page = (await server.http.get("/metrics")).text
    assert "# HELP onlyseen_gang_violations_total Help of gang_violations.\n" in page
    server.engine.is_alive = False  # a dead engine is not refreshed
    server.engine.counter_values = {"gang_violations": 4}
    assert (await read_metrics(server))["gang_violations_total"] == 3


async def test_concurrent_requests_share_a_page_built_in_a_thread(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    generate = metrics.generate_latest

    def record(registry: CollectorRegistry) -> bytes:
        threads.append(threading.current_thread())
        time.sleep(0.05)  # until the other requests have arrived
        return generate(registry)

    monkeypatch.setattr(metrics, "generate_latest", record)
    await asyncio.gather(*(read_metrics(server) for _ in range(20)))
    builds = len(threads)
    assert 1 <= builds < 10
    assert threading.current_thread() not in threads
    await read_metrics(server)  # a later request gets a page of its own
    assert len(threads) == builds + 1


async def test_cancelled_request_leaves_the_page_to_others(server: FakeServer) -> None:
    page_metrics = server.app.state.service.metrics
    first, second = (asyncio.create_task(page_metrics.build_page(None)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert b"onlyseen_image_cache_hits" in await second


async def test_strategy_labels_are_bounded(server: FakeServer) -> None:
    for number in range(100):
        server.app.state.service.metrics.track_request(f"made-up-{number}").finish()
    assert len([name for name in await read_metrics(server) if name.startswith("num_requests_waiting")]) == 65


async def test_version_is_shown(server: FakeServer) -> None:
    assert (await server.http.get("/version")).json()["version"]
