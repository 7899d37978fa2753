"""Start, health, failure, and clients that leave."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from structlog.typing import EventDict

from decoding.errors import EngineFailed, Overloaded, Unsupported
from decoding.outputs import Token
from server.serving import request_handler
from server.serving.generation import merge_streams
from tests.server.conftest import AsgiClient, StartServer, chat_request, image_messages, wait_until
from tests.server.fakes import FakeEngine


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "type", "code"),
    [
        (Overloaded("Full."), 429, "rate_limit_error", "queue_full"),
        (Unsupported("Cannot."), 400, "invalid_request_error", "unsupported"),
        (EngineFailed("Broke."), 500, "server_error", "engine_failed"),
        (ZeroDivisionError("secret"), 500, "server_error", "internal_error"),
    ],
)
async def test_failure_before_first_token_sets_status(
    start_server: StartServer, stream: bool, failure: Exception, status: int, type: str, code: str
) -> None:
    server = await start_server(FakeEngine(failure=failure))
    response = await server.chat(stream=stream, n=2)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (status, type, code)
    assert ("retry-after" in response.headers) == (status == 429)
    assert "secret" not in response.text
    assert server.engine.running == 0


async def test_merge_streams_retrieves_all_exceptions() -> None:
    """asyncio reports an exception that nothing retrieved."""

    async def full() -> AsyncGenerator[Token, None]:
        raise Overloaded("Full.")
        yield

    missed: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: missed.append(context))
    with pytest.raises(Overloaded):
        await anext(merge_streams([full() for _ in range(4)], 4))
    gc.collect()
    await asyncio.sleep(0)
    assert missed == []


async def test_failure_of_parallel_extra_request_keeps_its_status(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(failure=Overloaded("Full.")))
    assert (await server.chat(model="tiny:vote")).status_code == 429


@pytest.mark.parametrize("failure", [EngineFailed("Broke."), ZeroDivisionError("secret")])
async def test_stream_failure_is_last_event(
    start_server: StartServer, failure: Exception, log_entries: list[EventDict]
) -> None:
    server = await start_server(FakeEngine(failure=failure, fails_after=2))
    response = await server.chat(stream=True)
    assert response.status_code == 200
    *_, event, data = response.text.strip().splitlines()
    assert event == "event: error"
    error = json.loads(data.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in response.text
    assert "[DONE]" not in response.text
    assert any(entry["log_level"] == "error" for entry in log_entries)


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": True}, {"stream": True, "n": 3}, {"n": 3}])
async def test_disconnect_frees_rows(start_server: StartServer, fields: dict[str, Any]) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    server = await start_server(engine)
    client = AsgiClient(server.app, model="tiny:focus", messages=image_messages(), **fields)
    call = asyncio.create_task(client.call())
    await wait_until(lambda: engine.running == fields.get("n", 1))
    await asyncio.sleep(0.05)
    client.disconnect.set()
    await asyncio.wait_for(call, timeout=1)
    assert (engine.running, engine.closed_early, engine.stored_states) == (0, fields.get("n", 1), set())


@pytest.mark.parametrize("strategy", ["focus", "vote"])
async def test_disconnect_during_extra_requests_frees_states(start_server: StartServer, strategy: str) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.5)
    server = await start_server(engine)
    client = AsgiClient(server.app, model=f"tiny:{strategy}", messages=image_messages(), stream=True)
    call = asyncio.create_task(client.call())
    await asyncio.sleep(0.1)
    client.disconnect.set()
    await asyncio.wait_for(call, timeout=1)
    assert (engine.running, engine.stored_states) == (0, set())
    assert client.messages[0]["status"] == 499


async def test_client_that_stops_reading_times_out(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(request_handler, "SEND_TIMEOUT", 0.05)
    engine = FakeEngine(words=["word "] * 1000)
    server = await start_server(engine)
    client = AsgiClient(server.app, stream=True)

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    client.send = stuck  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        await client.call()
    assert engine.running == 0


async def test_quiet_stream_has_pings(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(request_handler, "PING_INTERVAL", 0.02)
    server = await start_server(FakeEngine(words=["a", "b"], pause=0.1))
    response = await server.chat(stream=True)
    assert ": ping" in response.text
    stream = await server.openai.chat.completions.create(**chat_request(stream=True))
    assert [chunk.choices[0].delta.content async for chunk in stream] == ["", "a", "b", None]


async def test_streams_beyond_the_limit_start_when_others_end() -> None:
    running, most = 0, 0

    async def count(index: int) -> AsyncGenerator[Token, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            for step in range(2 + index):
                await asyncio.sleep(0)
                yield Token(step, str(index))
        finally:
            running -= 1

    tokens = [choice_token async for choice_token in merge_streams([count(index) for index in range(5)], 2)]
    assert most == 2
    assert [sum(choice == index for choice, _ in tokens) for index in range(5)] == [2, 3, 4, 5, 6]
    assert all(token.text == str(choice) for choice, token in tokens)
    assert [choice for choice, _ in tokens[:2]] == [0, 1]
