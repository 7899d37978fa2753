"""What the engine counts of its own doings, among the server's metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from decoding.engine import Engine
from decoding.errors import OnlySeenError

PATIENCE = 2.0  # seconds; a busy engine answers between two steps


class EngineCounters(Collector):
    """As they were when last asked for: an engine that does not answer has its last ones shown again."""

    def __init__(self) -> None:
        self._latest: Mapping[str, int] = {}

    async def refresh(self, engine: Engine) -> None:
        with suppress(TimeoutError, OnlySeenError):
            async with asyncio.timeout(PATIENCE):
                self._latest = await engine.counters()

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, count in self._latest.items():
            yield CounterMetricFamily(
                f"onlyseen_{name}", f"Counted by the engine: {name.replace('_', ' ')}.", value=count
            )
