"""vLLM's scheduler and the gang scheduler, with a clock for their time per step of the engine core.

The figures pass through a small shared file, whose name is in the environment. The engine core is another process, and
stock vLLM has no method to query it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from decoding.vllm_engine.core.scheduler import GangScheduler

CLOCK_FILE_VARIABLE = "ONLYSEEN_BENCH_CLOCK"
RECORD = struct.Struct("ddQ")


def create_clock(file: Path) -> None:
    """Create the shared file for the engine that starts next."""
    file.write_bytes(RECORD.pack(0.0, 0.0, 0))
    os.environ[CLOCK_FILE_VARIABLE] = str(file)


def read_clock() -> tuple[float, float, int]:
    """Return processor seconds in `schedule` and in `update_from_output`, and steps, since the start."""
    return RECORD.unpack(Path(os.environ[CLOCK_FILE_VARIABLE]).read_bytes())  # type: ignore[return-value]


class SchedulerClock:
    """Mixin that times a scheduler in processor time of its thread, which other programs do not lengthen."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._scheduling = self._updating = 0.0
        self._steps = 0
        with open(os.environ[CLOCK_FILE_VARIABLE], "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), RECORD.size)

    def schedule(self, *arguments: Any, **named: Any) -> Any:
        started_at = time.thread_time()
        output = super().schedule(*arguments, **named)  # type: ignore[misc]
        self._scheduling += time.thread_time() - started_at
        self._steps += output.total_num_scheduled_tokens > 0
        return output

    def update_from_output(self, *arguments: Any, **named: Any) -> Any:
        started_at = time.thread_time()
        outputs = super().update_from_output(*arguments, **named)  # type: ignore[misc]
        self._updating += time.thread_time() - started_at
        RECORD.pack_into(self._shared, 0, self._scheduling, self._updating, self._steps)
        return outputs


class TimedStockScheduler(SchedulerClock, Scheduler):
    """vLLM's scheduler with a clock."""


class TimedGangScheduler(SchedulerClock, GangScheduler):
    """The gang scheduler with a clock."""
