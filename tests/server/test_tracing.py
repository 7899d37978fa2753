"""What an OpenTelemetry collector hears of a request."""

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
from tests.server.conftest import Serve, asked

PARENT = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes], threading.Event]]:
    """Its address, what it is sent, and whether a request's own span was in it, which ends last."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    heard, done = list[bytes](), threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            heard.append(body)
            self.send_response(200)
            self.end_headers()
            if self.path == "/v1/traces" and b"http.method" in body:
                done.set()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", heard, done
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_with_its_receipt(
    serve: Serve, collector: tuple[str, list[bytes], threading.Event], stream: bool
) -> None:
    url, heard, done = collector
    served = await serve(otlp_endpoint=url)
    for path in ("/health", "/metrics"):
        await served.http.get(path)
    headers = {"traceparent": f"00-{PARENT}-b7ad6b7169203331-01"}
    response = await served.http.post("/v1/chat/completions", json=asked(stream=stream), headers=headers)
    assert response.status_code == 200
    assert await anyio.to_thread.run_sync(done.wait, 10)
    told = b"".join(heard)  # messages of protobuf add up
    assert bytes.fromhex(PARENT) in told
    for text in (b"onlyseen.forward_passes", b"onlyseen.seconds.decode", b"plain", b"/v1/chat/completions"):
        assert text in told
    resources = ExportTraceServiceRequest.FromString(told).resource_spans
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    (whole,) = [span for span in spans if span.name.startswith("POST")]
    phases = {span.name: span for span in spans if span.parent_span_id == whole.span_id}
    assert set(phases) == {"onlyseen.prepare", "onlyseen.decode"}, "those that the fake engine tells"
    decode = phases["onlyseen.decode"]
    assert decode.end_time_unix_nano - decode.start_time_unix_nano == 500_000_000
    assert b"/health" not in told
    assert b"Hello" not in told


def test_an_address_is_an_address() -> None:
    with pytest.raises(ValidationError):
        Settings(otlp_endpoint="localhost:4318")
