"""Start, health, failure, and clients that leave."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from structlog.typing import EventDict

from decoding.answer import Token
from decoding.errors import EngineFailed, OnlySeenError, Overloaded, Unsupported
from server.together import together
from tests.server.conftest import Serve, Served, asked, seeing
from tests.server.fakes import ALL, FakeEngine


async def test_health_answers_while_the_model_is_loaded(serve: Serve) -> None:
    engine = FakeEngine()
    engine.starts.clear()
    served = await serve(engine, settle=False)
    assert (await served.http.get("/health")).status_code == 200
    for method, path in [("GET", "/ready"), ("GET", "/v1/models"), ("GET", "/v1/strategies")]:
        response = await served.http.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert response.headers["retry-after"]
    assert (await served.chat()).status_code == 503
    engine.starts.set()
    await served.settle()
    assert (await served.http.get("/ready")).json() == {"status": "ready"}
    assert (await served.chat()).status_code == 200


async def test_a_dead_engine_is_no_health(served: Served) -> None:
    served.engine.alive = False
    for response in [await served.http.get("/health"), await served.http.get("/ready"), await served.chat()]:
        assert (response.status_code, response.json()["error"]["type"]) == (503, "server_error")


async def test_an_engine_that_cannot_run_the_default_does_not_start(serve: Serve) -> None:
    served = await serve(FakeEngine(capabilities=ALL - {"branches"}), strategy="blind")
    assert "branches" in str(served.app.state.service.failure)
    assert (await served.http.get("/health")).status_code == 503


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
async def test_failures_before_the_first_token(
    serve: Serve, stream: bool, failure: Exception, status: int, type: str, code: str
) -> None:
    served = await serve(FakeEngine(failure=failure))
    response = await served.chat(stream=stream, n=2)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (status, type, code)
    assert ("retry-after" in response.headers) == (status == 429)
    assert "secret" not in response.text
    assert served.engine.running == 0


async def test_a_full_queue_refuses_before_the_request_is_read(served: Served) -> None:
    served.engine.is_full = True
    response = await served.chat(model="other", messages=seeing())
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_as_many_come_in_as_there_is_room_for(serve: Serve, stream: bool) -> None:
    """Previously a burst was read and its pictures decoded before the engine refused what it had no place for."""
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    served = await serve(engine, max_rows=1, max_waiting=1)
    clients = [Client(served.app, stream=stream) for _ in range(2)]
    calls = [asyncio.create_task(client.call()) for client in clients]
    await until(lambda: engine.running == 2)
    refused = await served.http.post("/v1/chat/completions", content=b"nonsense")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    for client in clients:
        client.left.set()
    await asyncio.gather(*calls)
    assert (await served.chat(max_tokens=1)).status_code == 200


async def test_choices_that_fail_together_are_all_looked_at() -> None:
    """Previously asyncio reported the second and later ones as failures that nobody had retrieved."""

    async def full() -> AsyncGenerator[Token, None]:
        raise Overloaded("Full.")
        yield

    missed: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: missed.append(context))
    with pytest.raises(Overloaded):
        await anext(together([full() for _ in range(4)]))
    gc.collect()
    await asyncio.sleep(0)
    assert missed == []


async def test_a_failure_in_a_question_side_by_side_is_told_as_itself(serve: Serve) -> None:
    served = await serve(FakeEngine(failure=Overloaded("Full.")))
    assert (await served.chat(model="tiny:vote")).status_code == 429


@pytest.mark.parametrize("failure", [EngineFailed("Broke."), ZeroDivisionError("secret")])
async def test_a_failure_in_a_stream_is_its_last_event(
    serve: Serve, failure: Exception, logged: list[EventDict]
) -> None:
    served = await serve(FakeEngine(failure=failure, fails_after=2))
    response = await served.chat(stream=True)
    assert response.status_code == 200
    *_, event, data = response.text.strip().splitlines()
    assert event == "event: error"
    error = json.loads(data.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in response.text
    assert "[DONE]" not in response.text
    assert any(entry["log_level"] == "error" for entry in logged)


async def test_request_ids(served: Served, logged: list[EventDict]) -> None:
    for path in ("/health", "/nothing"):
        response = await served.http.get(path, headers={"x-request-id": "mine_1-A"})
        assert response.headers["x-request-id"] == "mine_1-A"
    assert [entry["request_id"] for entry in logged if entry["event"] == "answered"] == ["mine_1-A"] * 2
    for bad in ("", "x" * 65, "a b", "a;b", "ü"):
        response = await served.http.get("/health", headers={b"x-request-id": bad.encode()})
        assert response.headers["x-request-id"] != bad
        assert len(response.headers["x-request-id"]) == 32


class Client:
    """Speaks ASGI, and hangs up when told to."""

    def __init__(self, app: Any, **fields: Any) -> None:
        self.app = app
        self.body = json.dumps(asked(**fields)).encode()
        self.sent: list[Any] = []
        self.left = asyncio.Event()

    async def receive(self) -> Any:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def call(self) -> None:
        path = "/v1/chat/completions"
        scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
        scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "scheme": "http"}
        await self.app(scope, self.receive, self.send)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not reached():  # noqa: ASYNC110 - nothing tells when it is reached
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": True}, {"stream": True, "n": 3}, {"n": 3}])
async def test_a_client_that_leaves_frees_its_rows(serve: Serve, fields: dict[str, Any]) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    served = await serve(engine)
    client = Client(served.app, model="tiny:focus", messages=seeing(), **fields)
    call = asyncio.create_task(client.call())
    await until(lambda: engine.running == fields.get("n", 1))
    await asyncio.sleep(0.05)
    client.left.set()
    await asyncio.wait_for(call, timeout=1)
    assert (engine.running, engine.closed_early, engine.kept) == (0, fields.get("n", 1), set())


@pytest.mark.parametrize("strategy", ["focus", "vote"])
async def test_a_client_that_leaves_while_questions_are_asked(serve: Serve, strategy: str) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.5)
    served = await serve(engine)
    client = Client(served.app, model=f"tiny:{strategy}", messages=seeing(), stream=True)
    call = asyncio.create_task(client.call())
    await asyncio.sleep(0.1)
    client.left.set()
    await asyncio.wait_for(call, timeout=1)
    assert (engine.running, engine.kept) == (0, set())
    assert client.sent[0]["status"] == 499


async def test_a_slow_reader_that_never_reads_again_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from server import stream

    monkeypatch.setattr(stream, "SLOWEST_READER", 0.05)
    engine = FakeEngine(words=["word "] * 1000)
    served = await serve(engine)
    client = Client(served.app, stream=True)

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    client.send = stuck  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        await client.call()
    assert engine.running == 0


async def test_pings_keep_a_quiet_stream_open(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from server import stream

    monkeypatch.setattr(stream, "PING", 0.02)
    served = await serve(FakeEngine(words=["a", "b"], pause=0.1))
    response = await served.chat(stream=True)
    assert ": ping" in response.text
    whole = await served.openai.chat.completions.create(**asked(stream=True))
    assert [chunk.choices[0].delta.content async for chunk in whole] == ["", "a", "b", None]


def test_errors_of_ours_all_have_an_answer() -> None:
    from server.errors import KINDS

    for error in (kind for kind in OnlySeenError.__subclasses__()):
        assert any(issubclass(error, raised) for raised, _ in KINDS), error
