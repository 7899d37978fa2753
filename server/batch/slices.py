"""Work on whole files of batches in slices of time.

A file can take minutes, and few threads read the files of all keys. Between two slices other files get the thread, and
a cancellation or the end of the server can stop the work.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing
from typing import Generic, TypeVar

from anyio import CapacityLimiter

from server.threads import run_to_end

Result = TypeVar("Result")

SLICE_SECONDS = 1.0


class SlicedWork(Generic[Result]):
    """Work that can pause wherever its generator yields.

    Attributes:
        is_finished: Whether `result` is there.
        result: What the generator has returned.
    """

    result: Result

    def __init__(self, steps: Generator[None, None, Result]) -> None:
        self.is_finished = False
        self._steps = steps

    def run_slice(self) -> None:
        """Run steps for `SLICE_SECONDS`, at least one. Slow: call it in a thread."""
        ends_at = time.monotonic() + SLICE_SECONDS
        while True:
            try:
                next(self._steps)
            except StopIteration as stop:
                self.result, self.is_finished = stop.value, True
                return
            if time.monotonic() >= ends_at:
                return


async def run_in_slices(
    steps: Generator[None, None, Result],
    limiter: CapacityLimiter,
    between: Callable[[], Awaitable[None]] | None = None,
) -> Result:
    """Run work in threads, one slice after the other.

    Args:
        steps: The work. It is closed when it is stopped.
        limiter: The threads for it.
        between: Called after each slice but the last one, if it is given. It raises an exception to stop the work.

    Returns:
        The result of the work.
    """
    with closing(steps):
        work = SlicedWork(steps)
        while True:
            await run_to_end(work.run_slice, limiter=limiter)
            if work.is_finished:
                return work.result
            if between is not None:
                await between()
