"""The application as Ray Serve deployments: replicas with an engine each, and a proxy that retries when one dies.

    serve run server.ray_serve:application min_replicas=2 max_replicas=8

Needs the extra `ray`. Settings come from the environment, or from the file that ONLYSEEN_CONFIG names. Ray Serve has
its own address.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import structlog
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from decoding.errors import Overloaded, Unsupported
from server.app import create_app, create_body_middleware, lifespan
from server.errors import ServiceUnavailable, build_error_response
from server.middleware.cors import create_cors_middleware
from server.middleware.http import ErrorMiddleware
from server.observability import logs
from server.observability.metrics import merge_metrics_pages
from server.process_setup import freeze_heap
from server.ray_router import SessionRouter
from server.settings import Settings

log = structlog.get_logger("onlyseen.server")

MAX_ATTEMPTS = 3  # replicas that may die under one request
METRICS_TIMEOUT = 5.0  # seconds that replicas have to return their metrics
PROXY_CAPACITY = 10_000  # requests in one proxy; --max-waiting bounds those that wait for a replica
FORWARDED_SCOPE_KEYS = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
)
# Replicas share no folder, and have no address. The proxy answers preflights.
REPLICA_SETTINGS = {"data_dir": None, "allowed_hosts": "*", "cors_origins": ""}
SINGLE_SERVER_PATHS = ("/v1/files", "/v1/batches")


class DeploymentArguments(BaseModel):
    """The arguments of `serve run`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1, description="default: min_replicas, without autoscaling")
    target: float = Field(default=16, gt=0, description="running and waiting requests a replica, for autoscaling")
    proxies: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0, description="CPUs that Ray reserves for a replica")
    gpus: float = Field(default=0, ge=0, description="GPUs that Ray reserves for a replica")


def application(arguments: dict[str, Any]) -> Any:
    """Build the application that `serve run` and `serve deploy` run.

    Args:
        arguments: Fields of `DeploymentArguments`.

    Returns:
        The Ray Serve application.
    """
    options, settings = DeploymentArguments.model_validate(arguments), Settings.load()
    replicas = serve.deployment(
        Replica,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas or options.min_replicas,
            "target_ongoing_requests": options.target,
        },
        max_ongoing_requests=settings.resolved_max_rows,
        max_queued_requests=settings.max_waiting,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        request_router_config=RequestRouterConfig(request_router_class=SessionRouter),
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )
    proxies = serve.deployment(
        serve.ingress()(Proxy),
        num_replicas=options.proxies,
        max_ongoing_requests=PROXY_CAPACITY,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        ray_actor_options={"num_cpus": 0},
    )
    return proxies.bind(replicas.bind(settings), settings)


class Replica:
    """A complete server without a socket. Ray replaces it when it dies or fails its health check."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.configure_logging()
        self._app = create_app(settings.model_copy(update=REPLICA_SETTINGS))
        self._exit_stack = AsyncExitStack()
        self._service = self._app.state.service
        startup_finished = asyncio.Event()
        self._service.on_startup_finished = lambda _: startup_finished.set()
        await self._exit_stack.enter_async_context(lifespan(self._app))
        await startup_finished.wait()
        freeze_heap()
        self.check_health()

    async def __del__(self) -> None:
        await self._exit_stack.aclose()

    def check_health(self) -> None:
        """Report a dead engine to Ray Serve.

        Raises:
            RuntimeError: The engine is dead.
        """
        if not self._service.is_alive:
            raise RuntimeError("The engine is dead.") from self._service.startup_error

    async def metrics(self, scope: Scope) -> tuple[str, tuple[Message, bytes]]:
        """Answer a request for /metrics.

        Args:
            scope: ASGI scope of the request, with its headers: without an API key the application refuses as usual.

        Returns:
            The name of the replica, and the start and the body of its response.
        """
        start, *rest = [message async for message in self.handle_request(scope, b"")]
        body = b"".join(message.get("body", b"") for message in rest)
        return serve.get_replica_context().replica_id.unique_id, (start, body)

    async def handle_request(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """Run the application on a request.

        Closing the generator ends the request. Ray closes it when the client disconnects.

        Args:
            scope: ASGI scope of the request.
            body: The complete body.

        Yields:
            ASGI messages of the response.
        """
        send_stream, messages = anyio.create_memory_object_stream[Message]()  # unbuffered: `send` waits for the client
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not unread:
                await asyncio.Event().wait()
            return unread.pop()

        async def run() -> None:
            with send_stream:
                await self._app(scope, receive, send_stream.send)

        task = asyncio.create_task(run())
        try:
            with messages:
                async for message in messages:
                    yield message
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Proxy:
    """Holds a request until a replica has started its response, so that another replica can take it over."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        logs.configure_logging()
        self._replicas = replicas
        self._request_handler = replicas.options(method_name="handle_request", stream=True)
        self._middleware = [
            *create_cors_middleware(settings),
            Middleware(ErrorMiddleware),
            create_body_middleware(settings),
        ]

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Mount("/", self._forward)], middleware=self._middleware)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(SINGLE_SERVER_PATHS):
            raise Unsupported(
                "Files and batches belong to one server. Ray Serve runs several. "
                "For many pictures, run `onlyseen-batch run` against this address."
            )
        forwarded = {name: scope[name] for name in FORWARDED_SCOPE_KEYS} | {"headers": list(scope["headers"])}
        forwarded |= {"client": scope.get("client"), "server": scope.get("server")}
        if scope["path"] == "/metrics":
            await self._send_metrics(forwarded, send)
            return
        messages, (start, message) = await self._start_response(forwarded, await Request(scope, receive).body())
        try:
            await send(remove_request_id(start))
            await send(message)
            while message.get("more_body", False):
                message = await anext(messages)
                await send(message)
        except RayActorError as error:
            error_response = build_error_response(ServiceUnavailable("The replica failed during the response."))
            log.error("replica_died_during_stream", code=error_response.body.error.code, exc_info=error)
            event = f"event: error\ndata: {error_response.to_json()}\n\n".encode()
            await send({"type": "http.response.body", "body": event})
        finally:
            messages.cancel()

    async def _send_metrics(self, scope: Scope, send: Send) -> None:
        """Send the metrics of all replicas as one page, or the error response of a replica."""
        results = self._replicas.broadcast("metrics", scope).results_async(
            timeout_s=METRICS_TIMEOUT, return_exceptions=True
        )
        try:
            responses = dict(result for result in await results if not isinstance(result, BaseException))
        except TimeoutError:
            responses = {}
        if not responses:
            raise ServiceUnavailable("No replica has returned its metrics.")
        start, body = max(responses.values(), key=lambda response: int(response[0]["status"]))
        if start["status"] == 200:
            body = merge_metrics_pages({replica: page.decode() for replica, (_, page) in responses.items()})
        headers = [header for header in remove_request_id(start)["headers"] if header[0] != b"content-length"]
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _start_response(self, scope: Scope, body: bytes) -> tuple[Any, tuple[Message, Message]]:
        """Return the messages of a response, whose status and first bytes have already come."""
        for _ in range(MAX_ATTEMPTS):
            messages = self._request_handler.remote(scope, body)
            try:
                return messages, (await anext(messages), await anext(messages))
            except BackPressureError:
                raise Overloaded("The queue is full; try again in a moment.", code="queue_full") from None
            except RayActorError as error:
                log.warning("replica_died_before_response", exc_info=error)
            except BaseException:
                messages.cancel()
                raise
        raise ServiceUnavailable("All replicas failed on this request.")


def remove_request_id(start: Message) -> Message:
    """Remove the x-request-id from a response, because Ray Serve adds its own."""
    return {**start, "headers": [header for header in start["headers"] if header[0] != b"x-request-id"]}
