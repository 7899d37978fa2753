"""Traces through OpenTelemetry, where --otlp-endpoint says where they go. Needs the extra `otel`."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from server.settings import Settings

if TYPE_CHECKING:
    from server.receipt import Receipt

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
        )
    ]


def note(told: Receipt) -> None:
    """The receipt's figures as attributes of the request's span, if there is one."""
    with suppress(ImportError):
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        if span.is_recording():
            for name in ("strategy", "steps", "forward_passes", "changed_steps"):
                if (value := getattr(told, name)) is not None:
                    span.set_attribute(f"onlyseen.{name}", value)
            for phase, seconds in told.timings.items():
                span.set_attribute(f"onlyseen.seconds.{phase}", seconds)
