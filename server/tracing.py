"""Traces through OpenTelemetry, where --otlp-endpoint says where they go. Needs the extra `otel`."""

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

    from server.receipt import Receipt

PHASES = ("queue", "prefill", "decode")  # of an engine, one after the other; `prepare` comes before them
TRACER: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
NOT_TRACED = "^(?!.*/v1/)"  # probes, figures and pages


def middleware(settings: Settings) -> list[Middleware]:
    """One span a request, which goes on from the client's `traceparent`.

    Raises:
        ValueError: the extra is not installed.
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
        raise ValueError("otlp_endpoint: needs `pip install 'onlyseen[otel]'`") from None
    about = {"service.name": "onlyseen", "service.version": version("onlyseen"), "onlyseen.model": settings.name}
    provider = TracerProvider(resource=Resource.create(about))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")))
    return [
        Middleware(
            OpenTelemetryMiddleware,
            tracer_provider=provider,
            excluded_urls=NOT_TRACED,
            exclude_spans=["receive", "send"],
        ),
        Middleware(Traced, tracer=provider.get_tracer("onlyseen")),
    ]


class Traced:
    """Lets whoever answers the request add spans to it."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self.app = app
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        TRACER.set(self.tracer)
        await self.app(scope, receive, send)


def note(told: Receipt) -> None:
    """The receipt's figures as attributes of the request's span, if there is one, and its phases as spans inside."""
    with suppress(ImportError):
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        if span.is_recording():
            for name in ("strategy", "steps", "forward_passes", "changed_steps"):
                if (value := getattr(told, name)) is not None:
                    span.set_attribute(f"onlyseen.{name}", value)
            for phase, seconds in told.timings.items():
                span.set_attribute(f"onlyseen.seconds.{phase}", seconds)
            if (tracer := TRACER.get()) is not None:
                inside(tracer, told)


def inside(tracer: Tracer, told: Receipt) -> None:
    """A span for each phase. They are over: their lengths are the receipt's, the last ends now."""
    at = time.time_ns()
    for phase in reversed(PHASES):
        if phase in told.timings:
            at = span_of(tracer, phase, at - nanoseconds(told.timings[phase]), at)
    if "prepare" in told.timings:
        began = time.time_ns() - nanoseconds(told.timings["total"])
        span_of(tracer, "prepare", began, began + nanoseconds(told.timings["prepare"]))


def span_of(tracer: Tracer, phase: str, began: int, ended: int) -> int:
    """When it began, nanoseconds."""
    tracer.start_span(f"onlyseen.{phase}", start_time=began).end(ended)
    return began


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
