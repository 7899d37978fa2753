"""The application: routes, middleware, and the lifecycle of engine and batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from decoding.engine import Engine
from server import engine_factory
from server.batch.runner import BatchRunner
from server.batch.store import BatchStore
from server.errors import build_router_error
from server.middleware.auth import ApiKeyMiddleware, ApiKeys
from server.middleware.cors import create_cors_middleware
from server.middleware.host import HostMiddleware, select_allowed_hosts
from server.middleware.http import (
    HEALTH_PATHS,
    ErrorMiddleware,
    HeadAsGetMiddleware,
    RequestIdMiddleware,
    SecurityHeadersMiddleware,
)
from server.middleware.pacing import PacingMiddleware
from server.middleware.request_body import RequestBodyMiddleware
from server.middleware.response_body import ResponseBodyMiddleware
from server.observability import tracing
from server.observability.refusals import report_router_error
from server.routes import (
    batches,
    chat_completions,
    completions,
    docs,
    files,
    health,
    metrics,
    models,
    openapi,
    playground,
    responses,
    strategies,
    tokenize,
)
from server.service import Service
from server.settings import Settings

BATCH_PARSERS = {
    "/v1/chat/completions": chat_completions.parse_body,
    "/v1/completions": completions.parse_body,
    "/v1/responses": responses.parse_body,
}

# Callers in this process need no keys, have no address, and share no folder.
LOCAL_SETTINGS = {"data_dir": None, "allowed_hosts": "*", "cors_origins": "", "api_keys": None, "api_keys_file": None}


def create_app(
    settings: Settings, create_engine: Callable[[Settings], Engine] = engine_factory.create_engine
) -> FastAPI:
    """Create the application.

    Args:
        settings: The server's settings.
        create_engine: Creates the engine. It runs in a thread after the application has started.

    Returns:
        The application, with `service`, `batch_store` and `batch_runner` in its state.
    """
    service = Service(settings, create_engine)
    app = FastAPI(
        title="OnlySeen",
        version=version("onlyseen"),
        description="Vision-language models over the OpenAI API, with hallucination mitigation chosen per request.",
        lifespan=lifespan,
        openapi_url=None,  # server/routes/openapi.py serves it, and server/routes/docs.py the page
        redirect_slashes=False,  # a redirect has no error body, and its address holds the client's Host header
        middleware=[
            *tracing.create_tracing_middleware(settings),
            Middleware(RequestIdMiddleware),
            Middleware(PacingMiddleware, quick_paths=HEALTH_PATHS),
            Middleware(SecurityHeadersMiddleware),
            *create_cors_middleware(settings, service.metrics),
            Middleware(ErrorMiddleware, metrics=service.metrics),
            Middleware(HeadAsGetMiddleware),
            create_body_middleware(settings),
            Middleware(HostMiddleware, hosts=select_allowed_hosts(settings)),
            Middleware(
                ApiKeyMiddleware, keys=ApiKeys.from_settings(settings), open_paths=playground.open_paths(settings)
            ),
            Middleware(ResponseBodyMiddleware, budget=service.response_budget),
        ],
        exception_handlers={HTTPException: handle_router_error, RequestValidationError: handle_router_error},
    )
    app.state.service = service
    store = app.state.batch_store = create_batch_store(settings)
    app.state.batch_runner = BatchRunner(service, store, BATCH_PARSERS)
    for module in (
        chat_completions,
        responses,
        completions,
        tokenize,
        files,
        batches,
        models,
        strategies,
        health,
        metrics,
        openapi,
        docs,
    ):
        app.include_router(module.router)
    if settings.playground != "off":
        app.include_router(playground.router)
    return app


def create_batch_store(settings: Settings) -> BatchStore:
    """Create the store of files and batches. With two or more API keys, each has a share of it."""
    max_bytes = settings.max_data_mb * 1_000_000
    return BatchStore(settings.data_dir, max_bytes, settings.compute_key_share(max_bytes))


def create_body_middleware(settings: Settings) -> Middleware:
    """Create the middleware that bounds bodies, with a larger bound for uploaded files."""
    path_limits = {"/v1/files": settings.max_file_mb * 1_000_000}
    return Middleware(
        RequestBodyMiddleware,
        limit=settings.max_body_mb * 1_000_000,
        timeout=settings.body_timeout,
        path_limits=path_limits,
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the batch store and start engine and batches in the background. Close all of them at the end."""
    service: Service = app.state.service
    store: BatchStore = app.state.batch_store
    runner: BatchRunner = app.state.batch_runner
    await store.open()
    startup = asyncio.create_task(start_service(service, runner))
    try:
        yield
    finally:
        startup.cancel()
        await asyncio.gather(startup, return_exceptions=True)
        await runner.close()
        await service.close()
        await store.close()


@asynccontextmanager
async def open_local_app(arguments: Sequence[str]) -> AsyncIterator[FastAPI]:
    """Run a complete server without a socket, for callers in this process.

    Args:
        arguments: Settings as command-line arguments. API keys and the folder of batches are ignored.

    Yields:
        The application, whose engine is ready.

    Raises:
        RuntimeError: A setting is wrong, or the engine does not start.
    """
    try:
        settings = Settings.load(arguments)
    except SystemExit as error:
        raise RuntimeError(f"The settings of the engine are wrong: {' '.join(arguments)}") from error
    app = create_app(settings.model_copy(update=LOCAL_SETTINGS))
    service: Service = app.state.service
    startup_finished = asyncio.Event()
    service.on_startup_finished = lambda _: startup_finished.set()
    async with lifespan(app):
        await startup_finished.wait()
        if service.startup_error is not None:
            raise RuntimeError(f"The engine did not start: {service.startup_error}")
        yield app


async def start_service(service: Service, runner: BatchRunner) -> None:
    """Start the engine and, if it works, the batches."""
    await service.start()
    if service.startup_error is None:
        runner.start()


async def handle_router_error(request: Request, error: Exception) -> Response:
    """Convert errors of FastAPI's router to OpenAI's error body."""
    status, param, headers = 400, None, None
    if isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
    elif isinstance(error, RequestValidationError):
        param = str(error.errors()[0]["loc"][-1])
    body = build_router_error(status, param)
    report_router_error(status, body.error, request.app.state.service.metrics)
    return JSONResponse(body.model_dump(), status, headers)
