"""What the routes share: the settings, the engine with its life, and the image loader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import anyio
import structlog
from fastapi import Depends, Request

from decoding.engine import Engine
from server.batch.store import Store
from server.errors import Unavailable
from server.fingerprint import fingerprint
from server.image import Pictures
from server.metrics import Metrics
from server.settings import Settings

if TYPE_CHECKING:
    from decoding.stack import Run
    from decoding.strategy import Strategy
    from server.batch.runner import Runner

log = structlog.get_logger("onlyseen.server")

STOPPING = "The server is stopping."
READERS = 4  # threads that read bodies: a crowd of them would only take the interpreter from one another


class Service:
    """The engine is created and started in the background, so that /health answers from the first moment."""

    def __init__(self, settings: Settings, create: Callable[[Settings], Engine]) -> None:
        self.settings = settings
        self.pictures = Pictures(settings.allowed_hosts(), settings.image_cache_mb * 1_000_000)
        self.metrics = Metrics(self.pictures.cache)
        self.store = Store(settings.data_dir, settings.max_data_mb * 1_000_000)
        self.batches: Runner  # the application sets it
        self.began = int(time.time())
        self.readers = anyio.CapacityLimiter(READERS)
        self.is_leaving = False  # told to stop: what runs is ended, what comes is refused
        self.inside = 0  # requests that came in and whose answer has not been sent to its end
        self.failure: Exception | None = None
        self.fingerprint: str | None = None
        self.on_settled: Callable[[Service], None] = lambda _: None  # called once, when ready or failed
        self._create = create
        self._engine: Engine | None = None
        self._is_warm = False

    async def start(self) -> None:
        """Until requests can be served, or never can."""
        began = time.perf_counter()
        try:
            engine = await asyncio.to_thread(self._create, self.settings)
            self._engine = engine
            await asyncio.to_thread(check_default, self.settings.strategy, engine)
            await engine.start()
            self.fingerprint = await asyncio.to_thread(fingerprint, *weights_of(self.settings))
            self._is_warm = True
            log.info("ready", model=self.settings.name, seconds=round(time.perf_counter() - began, 1))
        except Exception as failure:
            self.failure = failure
            log.error("the engine did not start", exc_info=failure)
        self.on_settled(self)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()

    @property
    def is_settled(self) -> bool:
        return self._is_warm or self.failure is not None

    @property
    def is_alive(self) -> bool:
        """Loading counts as alive."""
        return self.failure is None and (not self._is_warm or self.engine.alive)

    @property
    def engine(self) -> Engine:
        """Raises: Unavailable: it is not warm yet, or it is dead."""
        if self._engine is None or not self._is_warm:
            failed = "The engine did not start." if self.failure else "The model is being loaded."
            raise Unavailable(failed)
        return self._engine

    @property
    def ready_engine(self) -> Engine:
        if not self.engine.alive:
            raise Unavailable("The engine has stopped.")
        return self.engine

    def run(self, stack: Sequence[Strategy]) -> Run:
        from decoding.stack import Run

        return Run(stack, self.ready_engine)


def weights_of(settings: Settings) -> list[str]:
    return [settings.model, *([settings.matcher_source] if settings.matcher_source else [])]


def check_default(names: str, engine: Engine) -> None:
    """Raises: OnlySeenError: the server's default strategy does not exist, or the engine cannot run it."""
    from decoding import registry
    from decoding.lacking import require
    from decoding.rehearsal import rehearse

    for strategy in registry.build(names, {}):
        require(strategy, rehearse(strategy).needs, engine.capabilities)


def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


TheService = Annotated[Service, Depends(service)]
