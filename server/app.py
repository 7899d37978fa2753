"""The application: routes, middleware and the engine's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from decoding.engine import Engine
from server import (
    about,
    chat,
    engines,
    health,
    models,
    openapi,
    playground,
    responses,
    strategies,
    text,
    tokenize,
    tracing,
)
from server.batch import batches, files
from server.batch.runner import Runner
from server.errors import http_error
from server.guard import Guard
from server.headers import SecurityHeaders
from server.keys import Keys
from server.middleware import BodyLimit, ErrorLayer, HeadAsGet, RequestId
from server.service import Service
from server.settings import Settings


def create_app(settings: Settings, create: Callable[[Settings], Engine] = engines.create) -> FastAPI:
    """`create` makes the engine, in a thread, once the application runs."""
    app = FastAPI(
        title="OnlySeen",
        version=version("onlyseen"),
        description="Vision-language models that say only what they see, over the OpenAI API.",
        lifespan=lifespan,
        openapi_url=None,  # server/openapi.py has it
        redirect_slashes=False,  # a redirect has no error body, and its address is made of the client's Host
        middleware=[
            *tracing.middleware(settings),
            Middleware(RequestId),
            Middleware(SecurityHeaders),
            Middleware(ErrorLayer),
            Middleware(HeadAsGet),
            body_limit(settings),
            Middleware(Guard, keys=Keys.of(settings), also_open=playground.open_paths(settings)),
        ],
        exception_handlers={HTTPException: refused_by_router, RequestValidationError: refused_by_router},
    )
    service = app.state.service = Service(settings, create)
    service.batches = Runner(service)
    for module in (chat, responses, text, tokenize, files, batches, models, strategies, health, about, openapi):
        app.include_router(module.router)
    if settings.playground != "off":
        app.include_router(playground.router)
    return app


def body_limit(settings: Settings) -> Middleware:
    larger = {"/v1/files": settings.max_file_mb * 1_000_000}
    return Middleware(BodyLimit, limit=settings.max_body_mb * 1_000_000, larger=larger)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    await service.store.open()
    starting = asyncio.create_task(started(service))
    try:
        yield
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await service.batches.close()
        await service.close()
        await service.store.close()


async def started(service: Service) -> None:
    await service.start()
    if service.failure is None:
        service.batches.start()


async def refused_by_router(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse(http_error(error.status_code).model_dump(), error.status_code, error.headers)
    param = str(error.errors()[0]["loc"][-1]) if isinstance(error, RequestValidationError) else None
    return JSONResponse(http_error(400, param).model_dump(), 400)
