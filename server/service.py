"""The state that routes share: settings, engine, image loader and metrics."""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import anyio
import structlog
from fastapi import Depends, Request

from decoding.engine import Engine
from decoding.errors import EngineFailed, OnlySeenError
from server.errors import ServiceUnavailable
from server.fair_queue import FairQueue
from server.media.image_memory import ImageMemory
from server.media.images import MAX_FETCHED_BYTES, ImageLoader
from server.middleware.body_budget import BodyBudget
from server.observability.metrics import Metrics
from server.serving.row_estimator import RowEstimator
from server.serving.schema_compiler import TURNS, SchemaCompiler
from server.settings import Settings
from server.weights_fingerprint import fingerprint_weights

if TYPE_CHECKING:
    from decoding.pipeline.runner import StrategyRunner
    from decoding.strategy import Strategy

log = structlog.get_logger("onlyseen.server")

DRAINING_MESSAGE = "The server is stopping."
RESPONSES_FULL = "Too many large responses wait for their clients; try again in a moment."
PARSE_THREADS = 4  # threads that parse bodies; more of them would only compete for the interpreter
FORM_THREADS = 1  # threads that parse forms; more of them would only compete for the interpreter
WORK_THREADS = 40  # threads for work that has no limiter of its own, as many as anyio has for files
BATCH_SHARE = 0.75  # of the engine's rows, for lines of batches; the other rows are free for requests of clients
LIST_PAGES = 16  # pages of files and batches in memory, of about 1 MB each
LARGE_BODY_BYTES = 1_000_000  # bodies beyond it are parsed one by one, which bounds the memory that parsing takes


class Service:
    """The engine with its life cycle, and the state that routes share.

    The engine is created and started in the background, so that /health answers at once.
    """

    def __init__(self, settings: Settings, create_engine: Callable[[Settings], Engine]) -> None:
        self.settings = settings
        self.model_name = settings.name  # resolves paths, so that it is computed once
        self.image_loader = create_image_loader(settings)
        self.pixel_memory = create_pixel_memory(settings)
        self.metrics = Metrics(self.image_loader.cache)
        self.created_at = int(time.time())
        self.parse_limiter = anyio.CapacityLimiter(PARSE_THREADS)
        self.large_parse_limiter = anyio.CapacityLimiter(1)
        self.form_queue = FairQueue(FORM_THREADS)
        self.strategies_limiter = anyio.CapacityLimiter(1)  # the first request describes the strategies for the others
        self.work_limiter = anyio.CapacityLimiter(WORK_THREADS)
        self.openapi_limiter = anyio.CapacityLimiter(1)  # the first request builds the document for the others
        self.openapi_body: bytes | None = None
        self.schema_compiler = create_schema_compiler(settings)
        self.body_budget = create_body_budget(settings)
        self.response_budget = create_response_budget(settings)
        self.is_draining = False  # after a stop signal: running requests finish, new ones are refused
        self.active_requests = 0  # admitted requests whose response is not complete
        self.active_by_owner: Counter[str] = Counter()
        self.fair_queue = create_fair_queue(settings)  # None with fewer than two API keys
        self.row_estimator = RowEstimator()
        self.batch_queue = create_batch_queue(settings)
        self.list_page_queue = create_list_page_queue(settings)
        self.startup_error: Exception | None = None
        self.fingerprint: str | None = None
        self.on_startup_finished: Callable[[Service], None] = lambda _: None  # called once, after success or failure
        self._salt_secret = secrets.token_bytes(32)
        self._create_engine = create_engine
        self._engine: Engine | None = None
        self._is_warm = False

    async def start(self) -> None:
        """Create and start the engine. A failure is kept in `startup_error`."""
        start = time.perf_counter()
        try:
            engine = await asyncio.to_thread(self._create_engine, self.settings)
            self._engine = engine
            await asyncio.to_thread(check_default_strategy, self.settings.strategy, engine)
            await engine.start()
            self.fingerprint = await asyncio.to_thread(fingerprint_weights, *list_weight_sources(self.settings))
            self._is_warm = True
            log.info("server_ready", model=self.settings.name, seconds=round(time.perf_counter() - start, 1))
        except Exception as error:
            self.startup_error = error
            # The message of such an error is for the operator, and a traceback would only hide it.
            is_explained = isinstance(error, OnlySeenError) and not isinstance(error, EngineFailed)
            log.error("engine_start_failed", reason=str(error), exc_info=None if is_explained else error)
        self.on_startup_finished(self)

    async def close(self) -> None:
        await self.schema_compiler.close()
        if self._engine is not None:
            await self._engine.close()

    @property
    def is_startup_finished(self) -> bool:
        """Whether the engine is warm, or has failed to start."""
        return self._is_warm or self.startup_error is not None

    @property
    def is_alive(self) -> bool:
        """Whether the engine works or is still loading."""
        return self.startup_error is None and (not self._is_warm or self.engine.is_alive)

    @property
    def engine(self) -> Engine:
        """The engine, also after it has stopped.

        Raises:
            ServiceUnavailable: It is not warm yet, or has failed to start.
        """
        if self._engine is None or not self._is_warm:
            raise ServiceUnavailable(
                "The engine did not start." if self.startup_error else "The model is still loading."
            )
        return self._engine

    @property
    def ready_engine(self) -> Engine:
        """The running engine.

        Raises:
            ServiceUnavailable: It is not warm yet, has failed to start, or has stopped.
        """
        if not self.engine.is_alive:
            raise ServiceUnavailable("The engine has stopped.")
        return self.engine

    @property
    def max_key_rows(self) -> int | None:
        """The rows that one API key may take at a time; None with fewer than two keys."""
        return None if self.fair_queue is None else self.fair_queue.max_owner_units

    def build_cache_salt(self, owner: str) -> str | None:
        """Build the salt that keeps the caches of an API key apart from those of other keys.

        The salt is no hash of the key alone, so that it can appear in logs of the engine.

        Args:
            owner: Owner of the request; "" on a server without keys.

        Returns:
            The salt, or None if all requests share the caches.
        """
        if not owner or self.settings.share_caches:
            return None
        return hmac.new(self._salt_secret, owner.encode(), "sha256").hexdigest()

    def create_runner(self, stack: Sequence[Strategy], cache_salt: str | None = None) -> StrategyRunner:
        """Create the runner of a stack on the ready engine."""
        from decoding.pipeline.runner import StrategyRunner

        return StrategyRunner(stack, self.ready_engine, cache_salt=cache_salt)


def create_image_loader(settings: Settings) -> ImageLoader:
    """Create the loader of images. With two or more API keys that share no caches, each has a share of its memory."""
    memory_bytes = settings.image_memory_mb * 1_000_000
    return ImageLoader(
        settings.list_image_hosts(),
        settings.image_cache_mb * 1_000_000,
        memory_bytes,
        max_owner_bytes=None if settings.share_caches else settings.compute_key_share(memory_bytes),
        max_owner_fetched_bytes=None if settings.share_caches else settings.compute_key_share(MAX_FETCHED_BYTES),
    )


def create_pixel_memory(settings: Settings) -> ImageMemory:
    """Create the memory for images as the model reads them. API keys that share no caches each have a share of it."""
    memory_bytes = settings.pixel_memory_mb * 1_000_000
    return ImageMemory(memory_bytes, None if settings.share_caches else settings.compute_key_share(memory_bytes))


def create_fair_queue(settings: Settings) -> FairQueue | None:
    """Create the queue in which API keys take turns.

    It lets a few more rows pass than the engine runs, so that the engine's queue is not empty between two requests.

    Returns:
        The queue, or None if there are no two keys.
    """
    if not settings.has_shares:
        return None
    rows = settings.resolved_max_rows
    return FairQueue(rows + min(rows, settings.max_waiting) // 2, settings.compute_key_share(rows))


def create_batch_queue(settings: Settings) -> FairQueue:
    """Create the queue for the rows of batches. A key has no more of them than of the engine's rows."""
    rows = settings.resolved_max_rows
    units = math.ceil(BATCH_SHARE * rows)
    return FairQueue(units, min(units, settings.compute_key_share(rows)))


def create_schema_compiler(settings: Settings) -> SchemaCompiler:
    """Create the compiler of schemas. With two or more API keys each has a share of its turns and of its memory."""
    max_bytes, share = settings.grammar_memory_mb * 1_000_000, settings.compute_key_share
    return SchemaCompiler(max_bytes, share(max_bytes), share(TURNS))


def create_list_page_queue(settings: Settings) -> FairQueue:
    """Create the queue for the pages in memory. With two or more API keys each has a share of them."""
    return FairQueue(LIST_PAGES, settings.compute_key_share(LIST_PAGES))


def create_body_budget(settings: Settings) -> BodyBudget:
    """Create the budget of bodies in memory. With two or more API keys each has a share, of at least one body."""
    return BodyBudget(*compute_body_bounds(settings))


def create_response_budget(settings: Settings) -> BodyBudget:
    """Create the budget of responses that clients read. It is as large as that of bodies, and has the same shares."""
    return BodyBudget(*compute_body_bounds(settings), message=RESPONSES_FULL, code="response_memory_full")


def compute_body_bounds(settings: Settings) -> tuple[int, int | None]:
    """Return the bytes of all bodies, and of those of one API key if there are two or more."""
    max_bytes = settings.max_buffered_mb * 1_000_000
    if not settings.has_shares:
        return max_bytes, None
    return max_bytes, max(settings.compute_key_share(max_bytes), settings.max_body_mb * 1_000_000)


def list_weight_sources(settings: Settings) -> list[str]:
    """Return the folders or hub ids of the model and of the matcher, if there is one."""
    return [settings.model, *([settings.matcher_source] if settings.matcher_source else [])]


def check_default_strategy(names: str, engine: Engine) -> None:
    """Check that the server's default stack exists, and that the engine can run it."""
    from decoding import registry
    from decoding.pipeline.capabilities import require_capabilities
    from decoding.pipeline.dry_run import dry_run

    for strategy in registry.build(names, {}):
        require_capabilities(strategy, dry_run(strategy).needs, engine.capabilities, engine.missing_reasons)


async def get_service(request: Request) -> Service:
    """Return the service of the application that handles a request.

    It is asynchronous like all dependencies, because FastAPI runs others in a thread.
    """
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
