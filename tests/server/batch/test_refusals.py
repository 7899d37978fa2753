"""Uploads, batches and downloads that are refused."""

from __future__ import annotations

from typing import Any

from tests.server.conftest import FakeServer

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
