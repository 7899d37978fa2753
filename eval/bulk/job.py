"""Runs a job against running servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rich.console import Console

from eval.bulk.executor import BulkExecutor
from eval.bulk.inputs import InputOptions, count_items, iterate_items
from eval.bulk.items import BulkItem, JobSettings
from eval.bulk.progress import JobProgress, JobSummary
from eval.bulk.rows import RowFormat
from eval.bulk.servers import JobPlan, ServerPool, prepare_job
from eval.bulk.store import RowStore, StoredJob
from eval.core.parquet import import_parquet
from eval.errors import EvaluationError, RunError
from eval.runs.client import EvalClient
from eval.runs.request import SamplingSettings
from eval.runs.stack_spec import PLAIN, StackSpec


@dataclass(frozen=True)
class JobOptions:
    """The options of a job, as given on the command line.

    Attributes:
        inputs: Files and folders.
        out: The output folder.
        read: How records become items.
        model: Name of the model, None for the only one.
        spec: The stack.
        sampling: Sampling parameters.
        seed: Seed of the job under sampled decoding.
        check: Have the claims of every answer checked.
        row_format: Format of the output.
        part_rows: Rows of a part.
        limit: Number of items, None for all.
        concurrency: Requests in flight at each server or engine.
        max_failures: Rows with an error after which the job ends.
        retries: Failures of an item that are tried again.
        patience: Seconds without any answer after which the job ends.
        timeout: Seconds for one response.
        api_key: Sent as a bearer token.
    """

    inputs: list[Path]
    out: Path
    read: InputOptions = field(default_factory=InputOptions)
    model: str | None = None
    spec: StackSpec = PLAIN
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    check: bool = False
    row_format: RowFormat = "parquet"
    part_rows: int = 10_000
    limit: int | None = None
    concurrency: int = 16
    max_failures: int | None = None
    retries: int = 5
    patience: float = 600.0
    timeout: float = 300.0
    api_key: str | None = None

    def iterate_items(self) -> Iterator[BulkItem]:
        """Iterate over the items of the inputs, up to the limit."""
        return islice(iterate_items(self.inputs, self.read), self.limit)

    def count_items(self) -> int:
        """Count the items of the inputs, up to the limit."""
        count = count_items(self.inputs, self.read)
        return count if self.limit is None else min(count, self.limit)

    def check_inputs(self) -> int:
        """Check the inputs before anything runs.

        Returns:
            The number of items.

        Raises:
            EvaluationError: The output folder is in an input, or a library is missing.
        """
        for entry in self.inputs:
            if entry.is_dir() and self.out.resolve().is_relative_to(entry.resolve()):
                raise EvaluationError(f"--out: {self.out} is inside of the input {entry}. Choose another folder.")
        if self.row_format == "parquet":
            import_parquet()
        return self.count_items()

    def create_client(self, url: str) -> EvalClient:
        """Create the client of a server."""
        return EvalClient(url, self.api_key, self.timeout, attempts=self.retries + 1, connections=self.concurrency + 1)

    def describe(self, settings: JobSettings) -> StoredJob:
        """Build the content of job.json."""
        return StoredJob(settings=settings, row_format=self.row_format, image_column=self.read.image_column)

    async def prepare(self, clients: list[EvalClient], engine: tuple[str, ...] | None = None) -> JobPlan:
        """Complete the settings of the job by what the servers report."""
        return await prepare_job(clients, self.model, self.spec, self.sampling, self.seed, self.check, engine)


def run_job(options: JobOptions, urls: list[str], console: Console) -> JobSummary:
    """Run a job against running servers, and write summary.json.

    Args:
        options: The options.
        urls: Addresses of the servers.
        console: The terminal.

    Returns:
        The summary.
    """
    total = options.check_inputs()
    return asyncio.run(_run(options, list(dict.fromkeys(urls)), total, console))


async def _run(options: JobOptions, urls: list[str], total: int, console: Console) -> JobSummary:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(options.create_client(url)) for url in urls]
        plan = await options.prepare(clients)
        pool = ServerPool(clients, plan, options.concurrency, options.retries, options.patience)
        with (
            RowStore(options.out, options.describe(plan.settings), options.part_rows) as store,
            JobProgress(console, total) as progress,
        ):
            workers = options.concurrency * len(clients)
            executor = BulkExecutor(store, pool.get_row, workers, progress, options.max_failures)
            complete = False
            try:
                await executor.execute(options.iterate_items())
                complete = True
            finally:
                summary = finish_job(store, progress, complete)
    return summary


def finish_job(store: RowStore, progress: JobProgress, complete: bool) -> JobSummary:
    """Write the last part and summary.json.

    Args:
        store: The store.
        progress: The progress of this run.
        complete: Whether the job has reached the end of its inputs. Only then does a failing disk raise an error here.

    Returns:
        The summary.
    """  # noqa: DOC501 - the store and the summary raise them
    try:
        store.finish()
        summary = progress.summarize(store.totals, complete)
        summary.write(store.folder)
    except (RunError, OSError):
        if complete:
            raise
        return progress.summarize(store.totals, complete)  # the error that has ended the job is raised
    return summary
