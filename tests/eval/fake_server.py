"""An OpenAI-compatible server with scripted answers, delays and failures, on a real socket in a thread."""

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

from eval.runs.stack_spec import parse_spec

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class ScriptedReply:
    """A scripted response: `text` becomes a completion or an error message, `raw` is sent unchanged."""

    text: str = ""
    status: int = 200
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    finish: str = "stop"
    receipt: dict[str, Any] | None = None
    claims: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


def catalog_entry(name: str, branches: int = 0, **defaults: object) -> dict[str, Any]:
    """Build an entry of /v1/strategies."""
    properties = {key: {"default": value} for key, value in defaults.items()}
    cost = {"branches": branches, "questions": {}}
    engines = [{"engine": "fake", "runs": True, "reason": None}]
    return {"name": name, "parameters": {"properties": properties}, "cost": cost, "engines": engines}


STRATEGIES = [
    catalog_entry("agla", 1, alpha=2.0, beta=0.5, text=None),
    catalog_entry("plain"),
    catalog_entry("sharpen", scale=3.0, beta=0.5),
    catalog_entry("truncate", beta=0.1),
    catalog_entry("vcd", 1, alpha=1.0, beta=0.1),
    catalog_entry("vhr", alpha=2.0),
]


@dataclass
class ScriptedServer:
    """An ASGI application that records requests and answers them with a script.

    Attributes:
        script: Maps the body of a request to a reply.
        strategies: Whether the server has /v1/strategies and sends receipts.
        fingerprint: Fingerprint of the weights in /v1/models.
        default_strategy: Strategy of requests that name none.
        requests: Bodies of all completion requests.
        headers: Headers of all requests.
        in_flight: Number of requests in flight.
        max_in_flight: Maximum of `in_flight`.
    """

    script: Callable[[dict[str, Any]], ScriptedReply]
    strategies: bool = True
    model: str = "fake"
    fingerprint: str | None = None
    default_strategy: str = "plain"
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0
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
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            reply, document = self._route(scope["path"], body)
            await asyncio.sleep(reply.delay)
        finally:
            self.in_flight -= 1
        content = reply.raw if reply.raw is not None else json.dumps(document).encode()
        headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _route(self, path: str, body: bytes) -> tuple[ScriptedReply, dict[str, Any]]:
        if path == "/v1/models":
            return ScriptedReply(), {
                "object": "list",
                "data": [self._describe_model(""), self._describe_model(":agla")],
            }
        if path == "/v1/strategies" and self.strategies:
            return ScriptedReply(), {"object": "list", "data": STRATEGIES}
        if path != "/v1/chat/completions":
            return ScriptedReply(status=404), {"error": {"message": "There is no such route."}}
        request = json.loads(body)
        self.requests.append(request)
        reply = self.script(request)
        if reply.status >= 400:
            return reply, {"error": {"message": reply.text}}
        return reply, self._build_completion(request, reply)

    def _describe_model(self, suffix: str) -> dict[str, str]:
        weights = {} if self.fingerprint is None else {"fingerprint": self.fingerprint}
        return {"id": f"{self.model}{suffix}", **weights}

    def _build_completion(self, request: dict[str, Any], reply: ScriptedReply) -> dict[str, Any]:
        tokens = len(reply.text.split()) + 1
        document: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish}
            ],
            "usage": {"prompt_tokens": 70, "completion_tokens": tokens, "total_tokens": 70 + tokens},
        }
        if self.strategies:
            document["onlyseen"] = reply.receipt or self._build_receipt(request, tokens)
        if reply.claims is not None:
            document["onlyseen"]["claims"] = reply.claims
        if reply.logprobs is not None:
            document["choices"][0]["logprobs"] = {"content": reply.logprobs}
        return document

    def _build_receipt(self, request: dict[str, Any], tokens: int) -> dict[str, Any]:
        suffix = request["model"].partition(":")[2]
        decoding = request.get("decoding") or (parse_spec(suffix).decoding if suffix else {})
        name = decoding.get("strategy") or self.default_strategy
        entries = {each["name"]: each for each in STRATEGIES}
        stack = [entries[part] for part in name.split("+")]
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
def start_server(server: ScriptedServer, port: int = 0) -> Iterator[ScriptedServer]:
    """Serve until the context ends."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()  # a connection made before the thread runs waits in the backlog
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


def prompt_of(request: dict[str, Any]) -> str:
    """Return the text of a request."""
    content = request["messages"][0]["content"]
    return str(next(part["text"] for part in content if part["type"] == "text"))


def image_of(request: dict[str, Any]) -> str:
    """Return the data URL of the image of a request."""
    content = request["messages"][0]["content"]
    return str(next(part["image_url"]["url"] for part in content if part["type"] == "image_url"))


def strategy_of(request: dict[str, Any]) -> str:
    """Return the strategy that a request names, in the body or in the model suffix."""
    return str(request.get("decoding", {}).get("strategy") or [*request["model"].split(":"), "plain"][1])
