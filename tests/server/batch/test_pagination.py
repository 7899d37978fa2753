"""Pages of files and batches: their bytes, and the number of pages in memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from server.batch import pagination
from server.batch.pagination import build_page
from server.batch.store import BatchStore
from server.fair_queue import FairQueue
from server.middleware.response_body import PART_BYTES
from server.routes.batches import BatchList
from tests.server.batch.test_store import make_batch
from tests.server.conftest import FakeServer, wait_until

CONTROL = "\x01"  # a character of six bytes in JSON
METADATA = {f"{number:02}" + CONTROL * 62: CONTROL * 512 for number in range(16)}


async def add_batches(store: BatchStore, number: int) -> list[str]:
    """Add batches with the largest metadata, and return their ids, newest first."""
    for index in range(number):
        batch = make_batch(index).model_copy(update={"status": "completed", "metadata": METADATA})
        await store.add_batch("", batch)
    return [f"batch_{index}" for index in reversed(range(number))]


@pytest.mark.parametrize("route", ["batches", "responses"])
async def test_long_metadata_key_is_refused(server: FakeServer, route: str) -> None:
    body: dict[str, Any] = {"model": "tiny", "input": "a"}
    if route == "batches":
        body = {"input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "24h"}
    for size, is_refused in ((64, False), (65, True)):
        response = await server.http.post(f"/v1/{route}", json=body | {"metadata": {"k" * size: "v"}})
        param = response.json()["error"]["param"] if response.status_code >= 400 else None
        assert (param == "metadata." + "k" * 64) is is_refused


async def test_page_ends_before_its_bytes_exceed_the_bound(server: FakeServer) -> None:
    ids = await add_batches(server.app.state.batch_store, 40)
    response = await server.http.get("/v1/batches?limit=100")
    page = response.json()
    assert 900_000 < len(response.content) < 1_100_000
    assert (page["has_more"], page["first_id"]) == (True, ids[0])
    assert page["last_id"] == page["data"][-1]["id"] == ids[len(page["data"]) - 1]
    assert [batch.id async for batch in server.openai.batches.list(limit=100)] == ids
    last = (await server.http.get(f"/v1/batches?limit=2&after={ids[-3]}")).json()
    assert (last["has_more"], last["last_id"]) == (False, ids[-1])


async def test_store_reads_one_document_beyond_the_bound(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, 1000)
    await store.open()
    try:
        await add_batches(store, 40)
        documents = await store.list_batches("", 101)
    finally:
        await store.close()
    assert sum(map(len, documents[:-1])) <= pagination.MAX_PAGE_BYTES < sum(map(len, documents))


def test_page_has_an_item_of_any_size() -> None:
    large = make_batch(0).model_copy(update={"metadata": {"a": "a" * pagination.MAX_PAGE_BYTES}}).model_dump_json()
    for documents, has_more in (([large], False), ([large, large], True)):
        page = json.loads(build_page(BatchList, documents, 100, Batch.model_validate_json).body)
        assert (len(page["data"]), page["has_more"]) == (1, has_more)


async def test_unread_pages_are_bounded(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that its client does not read keeps its slot. Other requests wait, and are refused beyond a bound."""
    monkeypatch.setattr(pagination, "MAX_WAITING_PAGES", 1)
    queue = server.app.state.service.list_page_queue = FairQueue(1)
    await add_batches(server.app.state.batch_store, 3)
    sizes, is_read = list[int](), asyncio.Event()

    async def send(message: Any) -> None:
        sizes.append(len(message.get("body", b"")))
        if sum(sizes) > 0:
            await is_read.wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/v1/batches", "raw_path": b"/v1/batches"}
    scope |= {"query_string": b"", "scheme": "http", "headers": [], "http_version": "1.1", "asgi": {"version": "3.0"}}
    unread = asyncio.create_task(server.app(scope, receive, send))
    await wait_until(lambda: sum(sizes) > 0)
    assert sum(sizes) <= PART_BYTES
    waiting = asyncio.create_task(server.http.get("/v1/files"))
    await wait_until(lambda: queue.count_waiting("") == 1)
    refused = await server.http.get("/v1/files")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_lists")
    assert refused.headers["retry-after"] == "1"
    is_read.set()
    await unread
    assert (await waiting).status_code == 200
    assert sum(sizes) > 2 * PART_BYTES


async def test_request_of_a_disconnected_client_does_not_wait_for_a_page(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagination, "MAX_WAITING_PAGES", 1)
    queue = server.app.state.service.list_page_queue = FairQueue(1)
    is_disconnected, statuses = asyncio.Event(), list[int]()

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    async def receive() -> Any:
        await is_disconnected.wait()
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/v1/batches", "raw_path": b"/v1/batches"}
    scope |= {"query_string": b"", "scheme": "http", "headers": [], "http_version": "1.1", "asgi": {"version": "3.0"}}
    async with queue.hold("", 1):
        waiting = asyncio.create_task(server.app(scope, receive, send))
        await wait_until(lambda: queue.count_waiting("") == 1)
        is_disconnected.set()
        await asyncio.wait_for(waiting, 5)
        assert statuses[0] == 499
        assert queue.count_waiting("") == 0
    assert (await server.http.get("/v1/files")).status_code == 200
