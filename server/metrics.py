"""What is counted for Prometheus: vLLM's names behind our prefix, by strategy."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from server.engine_counters import EngineCounters

if TYPE_CHECKING:
    from server.picture_cache import PictureCache
    from server.receipt import Receipt

MOST_LABELS = 64  # strategies can be combined at will: clients must not make series without end
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Of one application."""

    def __init__(self, cache: PictureCache) -> None:
        self.registry = CollectorRegistry()
        self._labels: set[str] = set()
        self.waiting = self._gauge("num_requests_waiting", "Requests whose first token is not there yet.")
        self.running = self._gauge("num_requests_running", "Requests that are being answered.")
        self.first = self._histogram("time_to_first_token_seconds", "From the parsed request to its first token.")
        self.between = self._histogram("inter_token_latency_seconds", "Between two tokens of a request.")
        self.whole = self._histogram("e2e_request_latency_seconds", "From the parsed request to its end.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.forward_passes = self._counter("forward_passes", "Rows run through the model.")
        self.responses = Counter("onlyseen_http_responses", "Answers by status.", ["status"], registry=self.registry)
        ProcessCollector(namespace="onlyseen", registry=self.registry)
        self.engine = EngineCounters()
        self.registry.register(self.engine)
        for name, told in {"hits": "found", "misses": "decoded anew"}.items():
            counter = Gauge(f"onlyseen_image_cache_{name}", f"Pictures {told}.", registry=self.registry)
            counter.set_function(partial(getattr, cache, name))
        held = Gauge("onlyseen_image_cache_bytes", "Bytes of pixels held.", registry=self.registry)
        held.set_function(lambda: cache.bytes)

    def watch(self, strategy: str) -> Watch:
        if len(self._labels) < MOST_LABELS:
            self._labels.add(strategy)
        return Watch(self, strategy if strategy in self._labels else "other")

    def _gauge(self, name: str, told: str) -> Gauge:
        return Gauge(f"onlyseen_{name}", told, ["strategy"], registry=self.registry)

    def _counter(self, name: str, told: str) -> Counter:
        return Counter(f"onlyseen_{name}", told, ["strategy"], registry=self.registry)

    def _histogram(self, name: str, told: str) -> Histogram:
        return Histogram(f"onlyseen_{name}", told, ["strategy"], registry=self.registry, buckets=SECONDS)


class Watch:
    """One request, watched from its start to its end, which may come at any time and more than once."""

    def __init__(self, metrics: Metrics, label: str) -> None:
        self._metrics = metrics
        self._label = label
        self._began = time.perf_counter()
        self._last: float | None = None
        self._is_over = False
        metrics.waiting.labels(label).inc()
        metrics.running.labels(label)  # shown as 0 from now on

    def began_to_answer(self) -> None:
        self._last = time.perf_counter()
        self._metrics.first.labels(self._label).observe(self._last - self._began)
        self._metrics.waiting.labels(self._label).dec()
        self._metrics.running.labels(self._label).inc()

    def token(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self._metrics.between.labels(self._label).observe(now - self._last)
        self._last = now

    def answered(self, receipt: Receipt, prompt_tokens: int) -> None:
        if self._is_over:
            return
        self._metrics.whole.labels(self._label).observe(time.perf_counter() - self._began)
        self._metrics.prompt_tokens.labels(self._label).inc(prompt_tokens)
        self._metrics.generation_tokens.labels(self._label).inc(receipt.steps)
        self._metrics.forward_passes.labels(self._label).inc(receipt.forward_passes)

    def over(self) -> None:
        if not self._is_over:
            self._is_over = True
            gauge = self._metrics.waiting if self._last is None else self._metrics.running
            gauge.labels(self._label).dec()
