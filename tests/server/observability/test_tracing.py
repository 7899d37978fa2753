"""The spans that an OpenTelemetry collector receives."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import anyio.to_thread
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError

from server.settings import Settings
from tests.server.conftest import StartServer, chat_request

PARENT = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes], threading.Event]]:
    """Yield a collector's address, the bodies it received, and an event for the request's own span, which ends last."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    bodies, done = list[bytes](), threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            bodies.append(body)
            self.send_response(200)
            self.end_headers()
            if self.path == "/v1/traces" and b"http.method" in body:
                done.set()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies, done
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("stream", [False, True])
async def test_request_span_holds_the_receipt(
    start_server: StartServer, collector: tuple[str, list[bytes], threading.Event], stream: bool
) -> None:
    url, bodies, done = collector
    server = await start_server(otlp_endpoint=url)
    for path in ("/health", "/metrics"):
        await server.http.get(path)
    headers = {"traceparent": f"00-{PARENT}-b7ad6b7169203331-01"}
    response = await server.http.post("/v1/chat/completions", json=chat_request(stream=stream), headers=headers)
    assert response.status_code == 200
    assert await anyio.to_thread.run_sync(done.wait, 10)
    exported = b"".join(bodies)  # concatenated protobuf messages merge
    assert bytes.fromhex(PARENT) in exported
    for text in (b"onlyseen.forward_passes", b"onlyseen.seconds.decode", b"plain", b"/v1/chat/completions"):
        assert text in exported
    resources = ExportTraceServiceRequest.FromString(exported).resource_spans
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    (request_span,) = [span for span in spans if span.name.startswith("POST")]
    phases = {span.name: span for span in spans if span.parent_span_id == request_span.span_id}
    assert set(phases) == {"onlyseen.prepare", "onlyseen.decode"}, "the fake engine reports the phase decode only"
    decode = phases["onlyseen.decode"]
    assert decode.end_time_unix_nano - decode.start_time_unix_nano == 500_000_000
    assert b"/health" not in exported
    assert b"Hello" not in exported


def test_endpoint_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings(otlp_endpoint="localhost:4318")
