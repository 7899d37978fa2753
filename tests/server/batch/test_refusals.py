"""Uploads, batches and downloads that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.batch.harness import make_line
from tests.server.conftest import FakeServer, StartServer

UPLOAD: dict[str, Any] = {"files": {"file": ("a.jsonl", b"0123456789")}, "data": {"purpose": "batch"}}
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


async def test_draining_server_takes_no_file_and_no_batch(server: FakeServer) -> None:
    file = (await server.http.post("/v1/files", **UPLOAD)).json()
    server.app.state.service.is_draining = True
    for response in (
        await server.http.post("/v1/files", **UPLOAD),
        await server.http.post("/v1/batches", json=BATCH | {"input_file_id": file["id"]}),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert response.headers["retry-after"] == "1"
    assert (await server.http.get(f"/v1/files/{file['id']}/content")).status_code == 200
    assert (await server.http.get("/v1/batches")).json()["data"] == []


@pytest.mark.parametrize(
    ("range_header", "status"), [("bytes=a", 400), ("lines=0-1", 400), ("bytes=5-2", 400), ("bytes=10-", 416)]
)
async def test_bad_range_has_the_error_body(server: FakeServer, range_header: str, status: int) -> None:
    file = (await server.http.post("/v1/files", **UPLOAD)).json()
    path = f"/v1/files/{file['id']}/content"
    response = await server.http.get(path, headers={"range": range_header})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (status, "invalid_request_error", "Range")
    assert error["message"] == "Range is not valid."
    assert response.headers.get("content-range") == ("bytes */10" if status == 416 else None)
    part = await server.http.get(path, headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")


@pytest.mark.parametrize("name", ["/samples/{}", "/docs/{}"])
async def test_bad_range_of_an_asset_has_the_error_body(server: FakeServer, name: str) -> None:
    asset = (await server.http.get("/samples")).json()["images"][0]["name"] if "samples" in name else "initializer.js"
    response = await server.http.get(name.format(asset), headers={"range": "bytes=a"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "Range")


async def test_page_of_another_site_cannot_use_a_server_without_keys(server: FakeServer) -> None:
    """A browser sends a form, and a request without a body, to any server."""
    headers = {"sec-fetch-site": "cross-site"}
    file = (await server.http.post("/v1/files", **UPLOAD)).json()
    batch = (await server.http.post("/v1/batches", json=BATCH | {"input_file_id": file["id"]})).json()
    for response in (
        await server.http.post("/v1/files", headers=headers, **UPLOAD),
        await server.http.post(f"/v1/batches/{batch['id']}/cancel", headers=headers),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert len((await server.http.get("/v1/files")).json()["data"]) == 1
    for site in ("same-origin", "none"):
        assert (await server.http.post("/v1/files", headers={"sec-fetch-site": site}, **UPLOAD)).status_code == 200


SAME_ORIGINS = [
    {"host": "192.0.2.2:8000", "origin": "http://192.0.2.2:8000"},
    {"host": "box", "origin": "http://box:8080"},  # nginx drops the port
    {"host": "Box.lan.", "origin": "https://box.lan"},
    {"host": "[fd00::2]:8000", "origin": "http://[fd00::2]:8000"},
    {"host": "server:8000", "origin": "http://a.example"},  # an allowed host; the proxy replaces the Host header
    {"host": "server:8000", "origin": "https://b.example", "sec-fetch-site": "same-origin"},
    {"host": "box"},
]
OTHER_ORIGINS = [
    {"host": "192.0.2.2:8000", "origin": "http://127.0.0.1:8000"},
    {"host": "box", "origin": "http://box.evil.example"},
    {"host": "box", "origin": "null"},
    {"host": "box", "origin": "http://["},
    {"host": "", "origin": "null"},
    {"host": "box", "origin": "file://"},
    {"host": "box", "origin": "http://box", "sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize(
    ("headers", "is_served"), [*((each, True) for each in SAME_ORIGINS), *((each, False) for each in OTHER_ORIGINS)]
)
async def test_origin_counts_without_sec_fetch_site(
    start_server: StartServer, headers: dict[str, str], is_served: bool
) -> None:
    """A browser sends Sec-Fetch-Site only with HTTPS and to loopback addresses."""
    server = await start_server(host="0.0.0.0", allowed_hosts="*, a.example")
    file = (await server.http.post("/v1/files", **UPLOAD)).json()
    batch = (await server.http.post("/v1/batches", json=BATCH | {"input_file_id": file["id"]})).json()
    statuses = [
        (await server.http.post("/v1/files", headers=headers, **UPLOAD)).status_code,
        (await server.http.post(f"/v1/batches/{batch['id']}/cancel", headers=headers)).status_code,
    ]
    assert (statuses == [403, 403]) == (not is_served)
    assert len((await server.http.get("/v1/files")).json()["data"]) == 1 + is_served


async def test_page_of_another_site_can_use_its_key(start_server: StartServer) -> None:
    """A proxy that allows other origins has let the browser send the key."""
    server = await start_server(api_keys="one")
    headers = {"sec-fetch-site": "cross-site", "authorization": "Bearer one"}
    upload = {**UPLOAD, "files": {"file": ("a.jsonl", make_line(0).encode())}}
    assert (await server.http.post("/v1/files", headers=headers, **upload)).status_code == 200
