"""vLLM's schedulers, stock and ours, with a clock: how long they take in a step of the engine core.

The figures go through a small shared file, whose name is in the environment: the engine core is another process, and
vLLM's own has no method by which it could be asked.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from decoding.vllm_engine.scheduler import GangScheduler

PLACE = "ONLYSEEN_BENCH_CLOCK"
FIGURES = struct.Struct("ddQ")


def create(file: Path) -> None:
    """For the engine that is started next."""
    file.write_bytes(FIGURES.pack(0.0, 0.0, 0))
    os.environ[PLACE] = str(file)


def read() -> tuple[float, float, int]:
    """Since the start: processor seconds in `schedule`, in `update_from_output`, and steps."""
    return FIGURES.unpack(Path(os.environ[PLACE]).read_bytes())  # type: ignore[return-value]


class Clock:
    """Before a scheduler class, times it. In processor time of its thread, which other programs do not lengthen."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._scheduling = self._updating = 0.0
        self._steps = 0
        with open(os.environ[PLACE], "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), FIGURES.size)

    def schedule(self, *arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        output = super().schedule(*arguments, **named)  # type: ignore[misc]
        self._scheduling += time.thread_time() - began
        self._steps += output.total_num_scheduled_tokens > 0
        return output

    def update_from_output(self, *arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        outputs = super().update_from_output(*arguments, **named)  # type: ignore[misc]
        self._updating += time.thread_time() - began
        FIGURES.pack_into(self._shared, 0, self._scheduling, self._updating, self._steps)
        return outputs


class TimedStock(Clock, Scheduler):
    pass


class TimedGangs(Clock, GangScheduler):
    pass
