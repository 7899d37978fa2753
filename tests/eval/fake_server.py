"""An OpenAI-compatible server whose answers, delays and failures are scripted; on a real socket, in a thread."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Reply:
    """What comes back: text becomes a completion; `raw` is sent as it is."""

    text: str = ""
    status: int = 200
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    finish: str = "stop"
    receipt: dict[str, Any] | None = None


def parameter(default: object) -> dict[str, object]:
    return {"default": default}


def entry(name: str, branches: int = 0, **defaults: object) -> dict[str, Any]:
    properties = {key: parameter(value) for key, value in defaults.items()}
    cost = {"branches": branches, "questions": {}}
    engines = [{"engine": "fake", "runs": True, "reason": None}]
    return {"name": name, "parameters": {"properties": properties}, "cost": cost, "engines": engines}


STRATEGIES = [
    entry("agla", 1, alpha=2.0, beta=0.5, text=None),
    entry("plain"),
    entry("sharpen", scale=3.0, beta=0.5),
    entry("truncate", beta=0.1),
    entry("vcd", 1, alpha=1.0, beta=0.1),
    entry("vhr", alpha=2.0),
]


@dataclass
class FakeServer:
    """`script` sees each request's body. With `strategies` it is one of ours: receipts and all."""

    script: Callable[[dict[str, Any]], Reply]
    strategies: bool = True
    model: str = "fake"
    fingerprint: str | None = None
    default: str = "plain"
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            reply, document = self.route(scope["path"], body)
            await asyncio.sleep(reply.delay)
        finally:
            self.running -= 1
        content = reply.raw if reply.raw is not None else json.dumps(document).encode()
        headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def route(self, path: str, body: bytes) -> tuple[Reply, dict[str, Any]]:
        if path == "/v1/models":
            return Reply(), {"object": "list", "data": [self.listed(""), self.listed(":agla")]}
        if path == "/v1/strategies" and self.strategies:
            return Reply(), {"object": "list", "data": STRATEGIES}
        if path != "/v1/chat/completions":
            return Reply(status=404), {"error": {"message": "There is no such route."}}
        request = json.loads(body)
        self.asked.append(request)
        reply = self.script(request)
        if reply.status >= 400:
            return reply, {"error": {"message": reply.text}}
        return reply, self.completion(request, reply)

    def listed(self, suffix: str) -> dict[str, str]:
        weights = {} if self.fingerprint is None else {"fingerprint": self.fingerprint}
        return {"id": f"{self.model}{suffix}", **weights}

    def completion(self, request: dict[str, Any], reply: Reply) -> dict[str, Any]:
        tokens = len(reply.text.split()) + 1
        document: dict[str, Any] = {
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish}
            ],
            "usage": {"prompt_tokens": 70, "completion_tokens": tokens, "total_tokens": 70 + tokens},
        }
        if self.strategies:
            document["onlyseen"] = reply.receipt or self.receipt(request, tokens)
        return document

    def receipt(self, request: dict[str, Any], tokens: int) -> dict[str, Any]:
        decoding = request.get("decoding", {})
        suffix = request["model"].partition(":")[2]
        name = decoding.get("strategy") or suffix or self.default
        known = {each["name"]: each for each in STRATEGIES}
        stack = [known[part] for part in name.split("+")]
        defaults = {
            each["name"]: {key: value["default"] for key, value in each["parameters"]["properties"].items()}
            for each in stack
        }
        rows = 1 + sum(each["cost"]["branches"] for each in stack)
        return {
            "strategy": name,
            "parameters": {owner: {**values, **decoding.get(owner, {})} for owner, values in defaults.items()},
            "branches": [],
            "steps": tokens,
            "forward_passes": rows * tokens,
            "changed_steps": 0,
            "timings": {"queue": 0.0, "prefill": 0.01, "decode": 0.01 * tokens, "total": 0.01 + 0.01 * tokens},
        }


@contextmanager
def serving(server: FakeServer, port: int = 0) -> Iterator[FakeServer]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server.port = listener.getsockname()[1]
    config = uvicorn.Config(server, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join(10)
        listener.close()


def question(request: dict[str, Any]) -> str:
    content = request["messages"][0]["content"]
    return str(next(part["text"] for part in content if part["type"] == "text"))


def picture(request: dict[str, Any]) -> str:
    content = request["messages"][0]["content"]
    return str(next(part["image_url"]["url"] for part in content if part["type"] == "image_url"))


def strategy(request: dict[str, Any]) -> str:
    return str(request.get("decoding", {}).get("strategy") or request["model"].partition(":")[2] or "plain")
