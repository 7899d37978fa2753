"""The application as Ray Serve deployments: replicas with an engine each, and a door that asks again when one dies.

    serve run server.ray_app:application min_replicas=2 max_replicas=8

Needs the extra `ray`. Settings come from the environment, or from the file that ONLYSEEN_CONFIG names; Serve listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from decoding.errors import Overloaded, Unsupported
from server import logs
from server.app import body_limit, create_app, lifespan
from server.errors import Unavailable, explain
from server.gathered import gathered
from server.middleware import ErrorLayer
from server.settings import Settings

log = structlog.get_logger("onlyseen.server")

ATTEMPTS = 3  # replicas that one request may see die
PATIENCE = 5.0  # seconds in which the replicas tell their metrics
OK = 200
AT_THE_DOOR = 10_000  # requests that one door holds; what waits for a replica is bounded by --max-waiting
PASSED_ON = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
OF_ONE_SERVER = ("/v1/files", "/v1/batches")


class Scale(BaseModel):
    """The arguments of `serve run`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1, description="default: min_replicas, without autoscaling")
    target: float = Field(default=16, gt=0, description="requests a replica, running and waiting, to scale to")
    doors: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0, description="that Ray sets aside for a replica")
    gpus: float = Field(default=0, ge=0)


def application(arguments: dict[str, Any]) -> Any:
    """What `serve run` and `serve deploy` run. `arguments` are those of `Scale`."""
    scale, settings = Scale.model_validate(arguments), Settings.load()
    replicas = serve.deployment(
        Replica,
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas or scale.min_replicas,
            "target_ongoing_requests": scale.target,
        },
        max_ongoing_requests=settings.rows,
        max_queued_requests=settings.max_waiting,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
    )
    doors = serve.deployment(
        serve.ingress()(Door),
        num_replicas=scale.doors,
        max_ongoing_requests=AT_THE_DOOR,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        ray_actor_options={"num_cpus": 0},
    )
    return doors.bind(replicas.bind(settings), settings)


class Replica:
    """A whole server but for its socket. Ray starts another when it dies, and when it says that it is not well."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.configure()
        self._app = create_app(settings)
        self._life = AsyncExitStack()
        self._service = self._app.state.service
        settled = asyncio.Event()
        self._service.on_settled = lambda _: settled.set()
        await self._life.enter_async_context(lifespan(self._app))
        await settled.wait()
        self.check_health()

    async def __del__(self) -> None:
        await self._life.aclose()

    def check_health(self) -> None:
        if not self._service.is_alive:
            raise RuntimeError("The engine is dead.") from self._service.failure

    async def metrics(self, scope: Scope) -> tuple[str, tuple[Message, bytes]]:
        """Whose they are, and what the application answers: a refusal to who has no key, as from one server."""
        start, *rest = [message async for message in self.answer(scope, b"")]
        body = b"".join(message.get("body", b"") for message in rest)
        return serve.get_replica_context().replica_id.unique_id, (start, body)

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """What the application sends. Closing this, as Ray does when the client has gone, ends the request."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not unread:
                await asyncio.Event().wait()
            return unread.pop()

        async def send(message: Message) -> None:
            sent.put_nowait(message)

        working = asyncio.create_task(self._app(scope, receive, send))
        working.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (message := await sent.get()) is not None:
                yield message
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


class Door:
    """Holds a request until a replica has begun to answer it, so that what dies with a replica can be asked again."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        logs.configure()
        self._replicas = replicas
        self._answers = replicas.options(method_name="answer", stream=True)
        self._middleware = [Middleware(ErrorLayer), body_limit(settings)]

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Mount("/", self._pass_on)], middleware=self._middleware)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(OF_ONE_SERVER):
            raise Unsupported("Files and batches are kept by one server; behind Ray Serve there are many.")
        asked = {name: scope[name] for name in PASSED_ON} | {"headers": list(scope["headers"])}
        asked |= {"client": scope.get("client"), "server": scope.get("server")}
        if scope["path"] == "/metrics":
            await self._metrics(asked, send)
            return
        messages, (start, message) = await self._begun(asked, await Request(scope, receive).body())
        try:
            await send(without_id(start))
            await send(message)
            while message.get("more_body", False):
                message = await anext(messages)
                await send(message)
        except RayActorError as died:
            explanation = explain(Unavailable("The replica that answered died."))
            log.error("a replica died in a stream", code=explanation.body.error.code, exc_info=died)
            await send({"type": "http.response.body", "body": f"event: error\ndata: {explanation.json}\n\n".encode()})
        finally:
            messages.cancel()

    async def _metrics(self, scope: Scope, send: Send) -> None:
        """Of all replicas on one page; or the refusal that one of them answers with."""
        asking = self._replicas.broadcast("metrics", scope).results_async(timeout_s=PATIENCE, return_exceptions=True)
        try:
            told = dict(answer for answer in await asking if not isinstance(answer, BaseException))
        except TimeoutError:
            told = {}
        if not told:
            raise Unavailable("No replica tells its metrics.")
        start, body = max(told.values(), key=lambda answer: int(answer[0]["status"]))
        if start["status"] == OK:
            body = gathered({replica: page.decode() for replica, (_, page) in told.items()})
        headers = [header for header in without_id(start)["headers"] if header[0] != b"content-length"]
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _begun(self, scope: Scope, body: bytes) -> tuple[Any, tuple[Message, Message]]:
        """An answer whose status and first bytes are there."""
        for _ in range(ATTEMPTS):
            messages = self._answers.remote(scope, body)
            try:
                return messages, (await anext(messages), await anext(messages))
            except BackPressureError:
                raise Overloaded("The queue is full; try again in a moment.", code="queue_full") from None
            except RayActorError as died:
                log.warning("a replica died; another one is asked", exc_info=died)
            except BaseException:
                messages.cancel()
                raise
        raise Unavailable("The replicas that were asked died.")


def without_id(start: Message) -> Message:
    """Serve says the request's id itself."""
    return {**start, "headers": [header for header in start["headers"] if header[0] != b"x-request-id"]}
