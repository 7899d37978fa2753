"""Measures for how long the interpreter is held, so that no other thread runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERVAL = 0.0005  # seconds between two looks at the clock


@dataclass
class Hold:
    """The longest hold in seconds of the processor, which other processes do not prolong."""

    seconds: float = 0.0


@contextmanager
def measure_longest_hold() -> Iterator[Hold]:
    """Watch the interpreter from a thread while the context lasts.

    Yields:
        The longest hold, which is complete after the context.
    """
    hold, is_over = Hold(), threading.Event()

    def watch() -> None:
        before = time.process_time()
        while not is_over.wait(INTERVAL):
            now = time.process_time()
            hold.seconds = max(hold.seconds, now - before)
            before = now

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield hold
    finally:
        is_over.set()
        thread.join()
