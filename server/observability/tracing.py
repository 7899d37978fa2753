"""OpenTelemetry traces, sent to the collector of --otlp-endpoint. Needs the extra `otel`."""

from __future__ import annotations

import time
from contextlib import suppress
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from server.schemas.response import Receipt

ENGINE_PHASES = ("queue", "prefill", "decode")  # in this order; the server's phase `prepare` comes before them
TRACER: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
UNTRACED_URLS = "^(?!.*/v1/)"  # health checks, metrics and pages


def create_tracing_middleware(settings: Settings) -> list[Middleware]:
    """Create the middleware that makes one span for each request and continues the client's `traceparent`.

    Returns:
        The middleware, outermost first. Empty if there is no collector.

    Raises:
        ValueError: The extra is not installed.
    """
    if settings.otlp_endpoint is None:
        return []
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ValueError("otlp_endpoint: needs the extra otel (pip install '.[otel]')") from None
    attributes = {"service.name": "onlyseen", "service.version": version("onlyseen"), "onlyseen.model": settings.name}
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")))
    return [
        Middleware(
            OpenTelemetryMiddleware,
            tracer_provider=provider,
            excluded_urls=UNTRACED_URLS,
            exclude_spans=["receive", "send"],
        ),
        Middleware(TracerMiddleware, tracer=provider.get_tracer("onlyseen")),
    ]


class TracerMiddleware:
    """Puts the tracer into the request's context, so that `record_receipt` can add spans."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self.app = app
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        TRACER.set(self.tracer)
        await self.app(scope, receive, send)


def record_receipt(receipt: Receipt) -> None:
    """Add a receipt's figures to the request's span as attributes, and its phases as child spans.

    Without a span that records, nothing happens.
    """
    with suppress(ImportError):
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        if span.is_recording():
            for name in ("strategy", "steps", "forward_passes", "changed_steps"):
                if (value := getattr(receipt, name)) is not None:
                    span.set_attribute(f"onlyseen.{name}", value)
            for phase, seconds in receipt.timings.items():
                span.set_attribute(f"onlyseen.seconds.{phase}", seconds)
            if (tracer := TRACER.get()) is not None:
                add_phase_spans(tracer, receipt)


def add_phase_spans(tracer: Tracer, receipt: Receipt) -> None:
    """Add a span for each finished phase. The receipt gives the lengths, and the last phase ends now."""
    end = time.time_ns()
    for phase in reversed(ENGINE_PHASES):
        if phase in receipt.timings:
            end = add_span(tracer, phase, end - to_nanoseconds(receipt.timings[phase]), end)
    if "prepare" in receipt.timings:
        start = time.time_ns() - to_nanoseconds(receipt.timings["total"])
        add_span(tracer, "prepare", start, start + to_nanoseconds(receipt.timings["prepare"]))


def add_span(tracer: Tracer, phase: str, start: int, end: int) -> int:
    """Add a span between two times in nanoseconds, and return its start."""
    tracer.start_span(f"onlyseen.{phase}", start_time=start).end(end)
    return start


def to_nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
