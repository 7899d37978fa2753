"""Runs a job with engines of its own on Ray Data, which does blocks, back-pressure, retries and spilling.

Each actor of the pool has a complete server without a socket, to which the same code sends its requests. Needs the
extra `ray`. The modules of the server are loaded in the actors only, because the evaluation does without them.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import pkgutil
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from rich.console import Console

from eval.bulk.crash_record import MAX_CRASHES, CrashRecord
from eval.bulk.executor import require_few_failures
from eval.bulk.inputs import PICTURE_SUFFIXES, InputOptions, iterate_file, list_files
from eval.bulk.items import BulkItem, JobSettings
from eval.bulk.job import JobOptions, finish_job
from eval.bulk.progress import JobProgress, JobSummary
from eval.bulk.rows import BulkRow, build_error_row
from eval.bulk.servers import ServerPool
from eval.bulk.store import RowStore
from eval.errors import EvaluationError, RunError
from eval.runs.client import EvalClient

if TYPE_CHECKING:
    import pyarrow

ENGINE_APP = "server.app:open_local_app"
PICTURES_PER_SHARE = 256  # picture files that one task reads
BATCHES_PER_ENGINE = 2  # while the last answers of a batch run, those of the next begin
READER_CPUS = 0.25  # other than that of an engine, so that Ray Data keeps reading apart from it
TASK_RETRIES = 8  # of a batch whose engine dies for other reasons than an item
ENGINE_DIED = "the engine died {count} times while it ran this item, the last times without any other item"
KEY_BYTES = 16  # bytes of a key that tasks compare


@dataclass(frozen=True)
class EngineOptions:
    """The engines of a job.

    Attributes:
        count: Number of engines.
        arguments: Settings of each engine, as `onlyseen-server` takes them.
        cpus: CPUs that Ray reserves for an engine.
        gpus: GPUs that Ray reserves for an engine.
        address: Address of an existing Ray cluster, None to start one on this machine.
    """

    count: int
    arguments: tuple[str, ...] = ()
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None


def run_with_engines(options: JobOptions, engines: EngineOptions, console: Console) -> JobSummary:
    """Run a job with its own engines, and write summary.json.

    Args:
        options: The options of the job.
        engines: The engines.
        console: The terminal.

    Returns:
        The summary.

    Raises:
        EvaluationError: Ray is not installed, or --limit is set.
        RunError: An engine does not start, or fails again and again.
    """
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")  # needs pyarrow
    except ImportError:
        raise EvaluationError("--engines needs Ray: pip install '.[batch,ray]' in the folder of OnlySeen.") from None
    if options.limit is not None:
        raise EvaluationError("--limit does not work with --engines, whose tasks read the inputs side by side.")
    total = options.check_inputs()
    settings = JobSettings(
        model=options.model or "",
        spec=options.spec,
        sampling=options.sampling,
        seed=options.seed,
        check=options.check,
        engine=engines.arguments,
    )
    _start_ray(engines)
    with (
        RowStore(options.out, options.describe(settings), options.part_rows) as store,
        JobProgress(console, total) as progress,
    ):
        progress.skip(store.totals.rows)
        complete = False
        try:
            _store_rows(_iterate_rows(options, engines, store), store, progress, options.max_failures)
            complete = True
        except ray.exceptions.RayError as error:
            raise RunError(f"the engines have failed: {find_last_line(error)}") from error
        finally:
            summary = finish_job(store, progress, complete)
            ray.shutdown()
    return summary


def _start_ray(engines: EngineOptions) -> None:
    import ray

    if engines.address is not None:
        ray.init(engines.address, log_to_driver=False)
        return
    cpus, gpus = math.ceil(engines.count * engines.cpus) + 1, math.ceil(engines.count * engines.gpus)
    ray.init("local", num_cpus=cpus, num_gpus=gpus or None, include_dashboard=False, log_to_driver=False)


def _store_rows(
    batches: Iterator[list[BulkRow]], store: RowStore, progress: JobProgress, max_failures: int | None
) -> None:
    for rows in batches:
        progress.add(store.add(rows))
        require_few_failures(store, max_failures)


def _iterate_rows(options: JobOptions, engines: EngineOptions, store: RowStore) -> Iterator[list[BulkRow]]:
    """Iterate over the rows of the missing items, as Ray Data delivers them."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    crashes = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CrashRecord).remote()
    shares = [{"files": share} for share in split_shares(options.inputs)]
    done = np.array([key[:KEY_BYTES] for key in store.iterate_keys()], dtype=f"S{KEY_BYTES}")
    reader = ShareReader(options.read, ray.put(done), options.concurrency)
    dataset = ray.data.from_items(shares, override_num_blocks=len(shares)).map_batches(
        reader, batch_size=None, batch_format="pyarrow", num_cpus=READER_CPUS
    )
    # A block is the task of one engine. Without this, all records of a file would be one block.
    dataset = dataset.repartition(target_num_rows_per_block=options.concurrency)
    dataset = dataset.map_batches(
        EngineWorker,
        batch_size=options.concurrency,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=engines.count,
            max_concurrent_calls_per_actor=BATCHES_PER_ENGINE,
            max_tasks_in_flight_per_actor=2 * BATCHES_PER_ENGINE,
            enable_true_multi_threading=True,
        ),
        fn_constructor_args=(options, engines.arguments, crashes),
        num_cpus=engines.cpus,
        num_gpus=engines.gpus or None,
        max_restarts=-1,
        max_task_retries=TASK_RETRIES + MAX_CRASHES * options.concurrency,
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield [BulkRow.model_validate_json(row) for row in batch["row"].to_pylist()]


def split_shares(inputs: Sequence[Path]) -> Iterator[list[list[bytes]]]:
    """Split the files of the inputs into shares that one task reads: many picture files, or one other file.

    Args:
        inputs: Files and folders.

    Yields:
        Paths and names of the files of a share, in bytes, because they need not be UTF-8.
    """
    share: list[list[bytes]] = []
    for file, name in list_files(list(inputs)):
        if file.suffix.lower() not in PICTURE_SUFFIXES:
            yield [[os.fsencode(file), os.fsencode(name)]]
            continue
        share.append([os.fsencode(file), os.fsencode(name)])
        if len(share) == PICTURES_PER_SHARE:
            yield share
            share = []
    if share:
        yield share


class ShareReader:
    """Reads the missing items of shares as tables. Ray Data calls it in its tasks."""

    def __init__(self, options: InputOptions, done: Any, batch_rows: int) -> None:
        """Create a reader.

        Args:
            options: How records become items.
            done: Reference to the sorted beginnings of all keys that have a row.
            batch_rows: Rows of a table.
        """
        self._options = options
        self._done = done
        self._batch_rows = batch_rows

    def __call__(self, shares: pyarrow.Table) -> Iterator[pyarrow.Table]:
        import ray

        done = ray.get(self._done)
        files = [map(os.fsdecode, file) for share in shares["files"].to_pylist() for file in share]
        items = chain.from_iterable(iterate_file(Path(path), name, self._options) for path, name in files)
        missing = (item for item in items if not has_key(done, item.key))
        is_empty = True
        while some := list(islice(missing, self._batch_rows)):
            is_empty = False
            yield to_table(some)
        if is_empty:
            yield to_table([])


def has_key(done: np.ndarray[Any, Any], key: str) -> bool:
    """Return whether a key is in a sorted array of the beginnings of keys."""
    wanted = np.array(bytes.fromhex(key)[:KEY_BYTES], dtype=done.dtype)
    place = int(np.searchsorted(done, wanted))
    return place < len(done) and bool(done[place] == wanted)


def to_table(items: Sequence[BulkItem]) -> pyarrow.Table:
    """Convert items to a table."""
    import pyarrow

    text = pyarrow.string()
    schema = pyarrow.schema(
        [("id", text), ("source", text), ("prompt", text), ("content", pyarrow.binary()), ("problem", text)]
    )
    return pyarrow.Table.from_pylist(
        [{name: getattr(item, name) for name in schema.names} for item in items], schema=schema
    )


class EngineWorker:
    """An engine with its server, in an actor of Ray Data. It answers the items of a batch at the same time."""

    def __init__(self, options: JobOptions, arguments: tuple[str, ...], crashes: Any) -> None:
        """Start the engine.

        Args:
            options: The options of the job.
            arguments: Settings of the engine.
            crashes: Handle of the job's `CrashRecord`.
        """
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._stack = AsyncExitStack()
        self._crashes = crashes
        self._batches = asyncio.Semaphore(BATCHES_PER_ENGINE)
        self._alone = asyncio.Lock()  # otherwise two batches could wait for each other's half of the semaphore
        self._pool: ServerPool = self._run(self._open(options, arguments))

    def __call__(self, batch: pyarrow.Table) -> dict[str, list[str]]:
        items = [BulkItem(scope="", image=None, **record) for record in batch.to_pylist()]
        rows = self._run(self._get_rows(items))
        return {"row": [row.model_dump_json() for row in rows]}

    async def _open(self, options: JobOptions, arguments: tuple[str, ...]) -> ServerPool:
        open_app = pkgutil.resolve_name(ENGINE_APP)
        app = await self._stack.enter_async_context(open_app(arguments))
        client: EvalClient = options.create_client("http://127.0.0.1")
        client.transport = httpx.ASGITransport(app)
        await self._stack.enter_async_context(client)
        plan = await options.prepare([client], arguments)
        self._settings = plan.settings
        slots = options.concurrency * BATCHES_PER_ENGINE
        return ServerPool([client], plan, slots, options.retries, options.patience)

    async def _get_rows(self, items: Sequence[BulkItem]) -> list[BulkRow]:
        """Get the rows of a batch. Items that ran when an engine died run alone in the engine."""
        batch = {item.key: item for item in items}
        counts = dict(zip(batch, await self._crashes.count.remote([*batch]), strict=True))
        fresh = [key for key in batch if not counts[key]]
        async with self._batches:
            await self._crashes.start.remote(fresh)
            rows = await asyncio.gather(*(self._get_row(batch[key]) for key in fresh))
        for key, count in counts.items():
            if count >= MAX_CRASHES:
                rows.append(build_error_row(batch[key], self._settings, ENGINE_DIED.format(count=count)))
            elif count:
                async with self._run_alone():
                    await self._crashes.start.remote([key])
                    rows.append(await self._get_row(batch[key]))
        return rows

    @asynccontextmanager
    async def _run_alone(self) -> AsyncIterator[None]:
        """Wait until no other item runs, and let none start."""
        async with self._alone, AsyncExitStack() as stack:
            for _ in range(BATCHES_PER_ENGINE):
                await stack.enter_async_context(self._batches)
            yield

    async def _get_row(self, item: BulkItem) -> BulkRow:
        row = await self._pool.get_row(item)
        await self._crashes.finish.remote(item.key)
        return row

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def find_last_line(error: BaseException) -> str:
    """Return the last line of an error, which names the cause, without the traceback of the actor before it."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
