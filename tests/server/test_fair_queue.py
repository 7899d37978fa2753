"""The queues in which API keys take turns."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from decoding.errors import BadRequest
from server.fair_queue import FairQueue
from tests.server.conftest import StartServer, chat_request, image_messages, wait_until
from tests.server.fakes import FakeEngine


async def test_keys_take_turns() -> None:
    queue, order = FairQueue(2), list[str]()

    async def work(owner: str, rows: int) -> None:
        held = await queue.acquire(owner, rows)
        order.append(owner)
        await asyncio.sleep(0.01)
        queue.release(owner, held)

    tasks = [asyncio.create_task(work("first", 1)) for _ in range(6)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(work("second", 1)) for _ in range(2)]
    tasks += [asyncio.create_task(work("third", 99))]
    await asyncio.sleep(0)
    cancelled = tasks[5]
    cancelled.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order[:3] == ["first", "first", "second"]
    assert sorted(order) == ["first"] * 5 + ["second"] * 2 + ["third"]
    assert await asyncio.wait_for(queue.acquire("fourth", 2), 1) == 2


@pytest.mark.parametrize(("units", "owners", "rows", "in_flight"), [(48, 4, 16, 3), (48, 2, 99, 3), (8, 9, 1, 2)])
async def test_no_key_starves(units: int, owners: int, rows: int, in_flight: int) -> None:
    """Each key sends its next request as soon as one ends, so that all keys wait all the time."""
    queue, turns = FairQueue(units), Counter[str]()

    async def send_requests(owner: str) -> None:
        while True:
            async with queue.hold(owner, rows):
                turns[owner] += 1
                await asyncio.sleep(0)

    names = [f"key-{number}" for number in range(owners)]
    tasks = [asyncio.create_task(send_requests(name)) for name in names for _ in range(in_flight)]
    for _ in range(1000):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert min(turns[name] for name in names) >= 0.9 * max(turns.values()) > 50


async def test_rows_of_a_key_are_bounded() -> None:
    queue = FairQueue(6, max_owner_units=2)
    for _ in range(2):
        await queue.acquire("first", 1)
    waiting = asyncio.create_task(queue.acquire("first", 1))
    assert await asyncio.wait_for(queue.acquire("second", 4), 1) == 4  # more than its share, but it holds none
    assert not waiting.done()
    queue.release("first", 1)
    assert await asyncio.wait_for(waiting, 1) == 1


async def test_cancelled_requests_leave_the_queue() -> None:
    """The first request of the key waits for all units, so that those behind it are never served."""
    queue = FairQueue(2)
    held = await queue.acquire("other", 1)
    first = asyncio.create_task(queue.acquire("one", 2))
    cancelled = [asyncio.create_task(queue.acquire("one", 1)) for _ in range(3)]
    last = asyncio.create_task(queue.acquire("one", 1))
    await asyncio.sleep(0)
    assert queue.count_waiting("one") == 5
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    assert queue.count_waiting("one") == 2
    queue.release("other", held)
    queue.release("one", await asyncio.wait_for(first, 1))
    queue.release("one", await asyncio.wait_for(last, 1))
    assert queue.is_free("two", 2)


async def test_only_request_of_a_key_is_cancelled() -> None:
    queue = FairQueue(1)
    held = await queue.acquire("other", 1)
    only = asyncio.create_task(queue.acquire("one", 1))
    await asyncio.sleep(0)
    only.cancel()
    await asyncio.gather(only, return_exceptions=True)
    queue.release("other", held)
    assert queue.is_free("two", 1)


async def test_one_key_holds_only_its_share(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    server = await start_server(engine, api_keys="one,two", max_rows=2, max_waiting=2, key_share=0.5)

    async def chat(key: str, **fields: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return await server.http.post("/v1/chat/completions", json=chat_request(**fields), headers=headers)

    calls = [asyncio.create_task(chat("one")) for _ in range(2)]
    await wait_until(lambda: server.app.state.service.active_by_owner.total() == 2 and engine.running == 1)
    refused = await chat("one", max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert (await chat("two", max_tokens=1)).status_code == 200
    assert engine.running == 1  # the second request of the first key waits for the first one
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_choices_of_a_key_take_turns_within_its_share(start_server: StartServer) -> None:
    """One request for all rows would make other keys wait for the end of all its choices."""
    engine, most = FakeEngine(words=["word "] * 20, pause=0.005), 0
    server = await start_server(engine, api_keys="one,two", max_rows=8, key_share=0.5)
    headers = {"authorization": "Bearer one"}
    fields = {"n": 4, "messages": image_messages(), "decoding": {"strategy": "blind"}}
    for stream in (False, True):
        call = asyncio.create_task(
            server.http.post("/v1/chat/completions", json=chat_request(**fields, stream=stream), headers=headers)
        )
        while not call.done():
            most = max(most, engine.running)
            await asyncio.sleep(0.001)
        response = await call
        assert response.status_code == 200
        for choice in range(4):
            assert f'"index":{choice}' in response.text.replace(" ", "")
    assert most == 2  # of two rows each
    assert len(engine.requests) == 8


async def test_prompt_that_starts_later_is_refused_before_the_response(start_server: StartServer) -> None:
    engine = FakeEngine(max_words=3)
    server = await start_server(engine, api_keys="one,two", max_rows=8, key_share=0.25)
    server.http.headers["authorization"] = "Bearer one"
    prompts = ["a", "b", "c", "one two three four"]
    for stream in (False, True):
        response = await server.http.post(
            "/v1/completions", json={"model": "tiny", "prompt": prompts, "stream": stream}
        )
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "prompt")
        assert error["code"] == "context_length_exceeded"
        assert not engine.requests


async def test_failure_of_a_later_choice_names_the_field_of_the_route(start_server: StartServer) -> None:
    engine = FakeEngine(failure=BadRequest("The answer does not fit.", param="messages"), fails_after=2)
    server = await start_server(engine)
    body = {"model": "tiny", "prompt": ["a", "b"]}
    response = await server.http.post("/v1/completions", json=body)
    assert response.json()["error"]["param"] == "prompt"
    response = await server.http.post("/v1/completions", json=body | {"stream": True})
    assert json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["param"] == "prompt"


async def test_only_key_holds_everything(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    server = await start_server(engine, api_keys="one", max_rows=2, max_waiting=1, key_share=0.3)
    server.http.headers["authorization"] = "Bearer one"
    calls = [asyncio.create_task(server.chat()) for _ in range(2)]
    await wait_until(lambda: engine.running == 2)
    assert (await server.chat(max_tokens=1)).status_code == 200
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
