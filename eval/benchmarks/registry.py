"""The tasks of `eval run`. Their modules are imported on use, so that `--help` loads no statistics library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import EvaluationError

if TYPE_CHECKING:
    from eval.core.task import BenchmarkTask, TaskOptions


def _load_pope(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.pope.task import PopeTask

    return PopeTask(data, options)


def _load_chair(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.chair.task import ChairTask

    return ChairTask(data, options)


def _load_mme(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.mme.task import MmeTask

    return MmeTask(data, options)


def _load_dash_b(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.dash_b import DashBTask

    return DashBTask(data, options)


def _load_mmvp(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.mmvp import MmvpTask

    return MmvpTask(data, options)


def _load_hallusionbench(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.hallusionbench.task import HallusionBenchTask

    return HallusionBenchTask(data, options)


def _load_amber(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.amber.task import AmberTask

    return AmberTask(data, options)


def _load_amber_generative(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.amber.task import AmberGenerativeTask

    return AmberGenerativeTask(data, options)


def _load_mmhal(data: Path, options: TaskOptions) -> BenchmarkTask:
    from eval.benchmarks.mmhal import MmhalTask

    return MmhalTask(data, options)


LOADERS: dict[str, Callable[[Path, TaskOptions], BenchmarkTask]] = {
    "pope": _load_pope,
    "chair": _load_chair,
    "mme": _load_mme,
    "dash-b": _load_dash_b,
    "mmvp": _load_mmvp,
    "hallusionbench": _load_hallusionbench,
    "amber": _load_amber,
    "amber-generative": _load_amber_generative,
    "mmhal": _load_mmhal,
}
TASK_NAMES = tuple(LOADERS)


def load_task(name: str, data: Path, options: TaskOptions) -> BenchmarkTask:
    """Create a task.

    Args:
        name: Name of the task.
        data: Folder with images and questions or annotations.
        options: Options of the task.

    Returns:
        The task.

    Raises:
        EvaluationError: There is no task with the name.
    """
    if name not in LOADERS:
        raise EvaluationError(f"There is no task '{name}'. Choose one of {', '.join(TASK_NAMES)}.")
    return LOADERS[name](data, options)
