"""Work, mostly in threads, that is awaited to its end.

Anyio's own threads are for files, those of Starlette's uploads and downloads included. All other work names another
limiter, so that a disk that hangs stops no request that reads no file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from anyio.to_thread import run_sync

Result = TypeVar("Result")


async def run_to_end(
    work: Callable[..., Result], *arguments: Any, limiter: anyio.CapacityLimiter | None = None
) -> Result:
    """Run work in a thread, and wait for its end even if the caller is cancelled.

    A thread cannot be stopped. If the caller ended first, other requests would get memory that the thread still uses.

    Args:
        work: The function.
        arguments: Its arguments.
        limiter: Bounds the threads; None: the limit of all threads.

    Returns:
        The result. If the caller was cancelled meanwhile, the cancellation is raised when the work has ended.
    """
    return await wait_to_end(run_sync(work, *arguments, limiter=limiter))


async def wait_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end even if the caller is cancelled.

    Args:
        work: The coroutine.

    Returns:
        The result. If the caller was cancelled meanwhile, the cancellation is raised when the work has ended.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with anyio.CancelScope(shield=True):  # anyio would cancel again in each iteration of the event loop
                await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        try:
            await checkpoint_if_cancelled()
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    task.exception()  # retrieved, so that it is not logged
    del task  # a traceback would keep the result
    raise cancellation  # the same object, because anyio finds the scope of a cancellation by its message
