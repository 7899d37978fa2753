"""Prometheus metrics: vLLM's names after the prefix `onlyseen_`, by strategy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.to_thread import run_sync
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from decoding.engine import Engine
from decoding.errors import OnlySeenError

if TYPE_CHECKING:
    from server.media.images import ImageCache
    from server.schemas.response import ClaimEntry, Receipt

CONFIRMED = 0.9  # probability of a claim that does not count as failed; the default threshold of `verify`
MAX_CODE_LABELS = 64  # the server has fewer codes; a plugin could add some
MAX_STRATEGY_LABELS = 64  # stacks are composed by clients and must not create series without bound
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # seconds
REFRESH_TIMEOUT = 2.0  # seconds; a busy engine answers between two steps


class Metrics:
    """All metrics of one application."""

    def __init__(self, image_cache: ImageCache) -> None:
        self.registry = CollectorRegistry()
        self._page: asyncio.Task[bytes] | None = None  # the page that is being built
        self._page_limiter = anyio.CapacityLimiter(1)
        self._labels: set[str] = set()
        self._codes: set[str] = set()
        self.waiting = self._add_gauge("num_requests_waiting", "Requests that wait for their first token.")
        self.running = self._add_gauge("num_requests_running", "Requests between their first token and their last.")
        self.time_to_first_token = self._add_histogram(
            "time_to_first_token_seconds", "Seconds from the parsed request to its first token."
        )
        self.inter_token_latency = self._add_histogram(
            "inter_token_latency_seconds", "Seconds between two tokens of a request."
        )
        self.request_latency = self._add_histogram(
            "e2e_request_latency_seconds", "Seconds from the parsed request to its last token."
        )
        self.prompt_tokens = self._add_counter("prompt_tokens", "Prompt tokens of finished requests.")
        self.generation_tokens = self._add_counter("generation_tokens", "Generated tokens of finished requests.")
        self.forward_passes = self._add_counter("forward_passes", "Rows run through the model for finished requests.")
        self.changed_steps = self._add_counter(
            "changed_steps", "Steps of finished requests whose likeliest token the strategy changed."
        )
        self.claims = self._add_counter("claims_checked", "Claims of finished requests that were checked.")
        self.failed_claims = self._add_counter(
            "claims_failed",
            f"Checked claims that verify replaced or dropped, or that a check gave a probability below {CONFIRMED}.",
        )
        self.errors = Counter(
            "onlyseen_error_responses",
            "Error responses by status and code, with those of streams and of lines of batches.",
            ["status", "code"],
            registry=self.registry,
        )
        self.responses = Counter(
            "onlyseen_http_responses", "HTTP responses by status.", ["status"], registry=self.registry
        )
        ProcessCollector(namespace="onlyseen", registry=self.registry)
        self.engine_counters = EngineCounters()
        self.registry.register(self.engine_counters)
        for name, text in {
            "hits": "Images found in the cache of decoded images.",
            "misses": "Images that were decoded.",
            "bytes": "Bytes of pixels in the cache of decoded images.",
        }.items():
            gauge = Gauge(f"onlyseen_image_cache_{name}", text, registry=self.registry)
            gauge.set_function(partial(getattr, image_cache, name))

    async def build_page(self, engine: Engine | None) -> bytes:
        """Build the page in a thread, once for all requests that arrive meanwhile.

        Args:
            engine: The engine whose counters are read, or None to show the previous ones.

        Returns:
            The page in Prometheus' text format.
        """
        if self._page is None or self._page.done():
            self._page = asyncio.create_task(self._build_page(engine))
        return await asyncio.shield(self._page)  # a request that is cancelled leaves the page to the others

    async def _build_page(self, engine: Engine | None) -> bytes:
        if engine is not None:
            await self.engine_counters.refresh(engine)
        return await run_sync(generate_latest, self.registry, limiter=self._page_limiter)

    def track_request(self, strategy: str) -> RequestMetrics:
        """Start the metrics of a request.

        Args:
            strategy: Names of its stack, joined by `+`. After the first `MAX_STRATEGY_LABELS` stacks, further ones
                share the label `other`.

        Returns:
            The recorder of the request. The caller finishes it.
        """
        if len(self._labels) < MAX_STRATEGY_LABELS:
            self._labels.add(strategy)
        return RequestMetrics(self, strategy if strategy in self._labels else "other")

    def count_error(self, status: int, code: str) -> None:
        """Count an error response.

        Args:
            status: HTTP status.
            code: Code of the error body, or its type if it has none. After the first `MAX_CODE_LABELS` codes, further
                ones share the label `other`.
        """
        if len(self._codes) < MAX_CODE_LABELS:
            self._codes.add(code)
        self.errors.labels(str(status), code if code in self._codes else "other").inc()

    def _add_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"onlyseen_{name}", text, ["strategy"], registry=self.registry)

    def _add_counter(self, name: str, text: str) -> Counter:
        return Counter(f"onlyseen_{name}", text, ["strategy"], registry=self.registry)

    def _add_histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"onlyseen_{name}", text, ["strategy"], registry=self.registry, buckets=LATENCY_BUCKETS)


class RequestMetrics:
    """Records one request from its start to its end."""

    def __init__(self, metrics: Metrics, label: str) -> None:
        self._metrics = metrics
        self._label = label
        self._start = time.perf_counter()
        self._last_token: float | None = None
        self._is_finished = False
        metrics.waiting.labels(label).inc()
        metrics.running.labels(label)  # from now on the series exists, with the value 0

    def record_first_token(self) -> None:
        """Move the request from waiting to running."""
        self._last_token = time.perf_counter()
        self._metrics.time_to_first_token.labels(self._label).observe(self._last_token - self._start)
        self._metrics.waiting.labels(self._label).dec()
        self._metrics.running.labels(self._label).inc()

    def record_token(self) -> None:
        """Record the time since the previous token."""
        now = time.perf_counter()
        if self._last_token is not None:
            self._metrics.inter_token_latency.labels(self._label).observe(now - self._last_token)
        self._last_token = now

    def record_receipt(self, receipt: Receipt, prompt_tokens: int) -> None:
        """Record the latency and the cost of a complete answer, unless the request is already finished."""
        if self._is_finished:
            return
        self._metrics.request_latency.labels(self._label).observe(time.perf_counter() - self._start)
        self._metrics.prompt_tokens.labels(self._label).inc(prompt_tokens)
        self._metrics.generation_tokens.labels(self._label).inc(receipt.steps)
        self._metrics.forward_passes.labels(self._label).inc(receipt.forward_passes)
        if receipt.changed_steps is not None:
            self._metrics.changed_steps.labels(self._label).inc(receipt.changed_steps)
        if receipt.claims is not None:
            self._metrics.claims.labels(self._label).inc(len(receipt.claims))
            self._metrics.failed_claims.labels(self._label).inc(sum(map(has_failed, receipt.claims)))

    def finish(self) -> None:
        """Count the request no longer as waiting or running. Further calls do nothing."""
        if not self._is_finished:
            self._is_finished = True
            gauge = self._metrics.waiting if self._last_token is None else self._metrics.running
            gauge.labels(self._label).dec()


def has_failed(claim: ClaimEntry) -> bool:
    """Return whether `verify` has acted on a claim, or a check has not confirmed it."""
    return claim.probability < CONFIRMED if claim.action is None else claim.action != "kept"


class EngineCounters(Collector):
    """The engine's own counters, as of the last refresh.

    When the engine does not answer a refresh, the previous values stay.
    """

    def __init__(self) -> None:
        self._latest: Mapping[str, int] = {}
        self._help: Mapping[str, str] = {}

    async def refresh(self, engine: Engine) -> None:
        """Read the counters of an engine, for at most `REFRESH_TIMEOUT`."""
        with suppress(TimeoutError, OnlySeenError):
            async with asyncio.timeout(REFRESH_TIMEOUT):
                self._latest = await engine.get_counters()
                self._help = engine.counter_help

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield one counter family for each counter of the engine."""
        for name, count in self._latest.items():
            yield CounterMetricFamily(f"onlyseen_{name}", self._help.get(name, ""), value=count)


def merge_metrics_pages(pages: Mapping[str, str]) -> bytes:
    """Merge the metrics of several replicas, each sample with the label `replica`.

    Args:
        pages: Replica name -> its /metrics page.

    Returns:
        One page in Prometheus' text format.
    """
    registry = CollectorRegistry()
    registry.register(ReplicaPagesCollector(pages))
    return generate_latest(registry)


class ReplicaPagesCollector(Collector):
    """The samples of several /metrics pages."""

    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterable[Metric]:
        """Return each metric family once with the samples of all replicas, because names must be unique on a page."""
        families: dict[str, Metric] = {}
        for replica, family in self._iterate_families():
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for name, labels, value, *_ in family.samples:
                merged.add_sample(name, {**labels, "replica": replica}, value)
        return families.values()

    def _iterate_families(self) -> Iterator[tuple[str, Metric]]:
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                yield replica, family
