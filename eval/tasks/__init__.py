"""The benchmarks that can be run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import EvaluationError
from eval.tasks.options import Options

if TYPE_CHECKING:
    from eval.tasks.task import Task


def _pope(data: Path, options: Options) -> Task:
    from eval.tasks.pope import Pope

    return Pope(data, options)


def _chair(data: Path, options: Options) -> Task:
    from eval.tasks.chair import Chair

    return Chair(data, options)


def _mme(data: Path, options: Options) -> Task:
    from eval.tasks.mme import MME

    return MME(data, options)


TASKS: dict[str, Callable[[Path, Options], Task]] = {"pope": _pope, "chair": _chair, "mme": _mme}
NAMES = tuple(TASKS)


def load(name: str, data: Path, options: Options) -> Task:
    """Raises: EvaluationError: there is none of that name."""
    if name not in TASKS:
        raise EvaluationError(f"There is no task '{name}'. There are {', '.join(NAMES)}.")
    return TASKS[name](data, options)
