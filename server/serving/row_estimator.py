"""Estimates the rows of requests from dry runs of their strategies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import structlog

from server.fair_queue import FairQueue
from server.threads import run_to_end

if TYPE_CHECKING:
    from decoding.pipeline.dry_run import DryRun
    from decoding.strategy import Strategy

log = structlog.get_logger("onlyseen.server")

MAX_DRY_RUNS = 512  # results that are kept; parameters have at most 20,000 characters
DEFAULTS = "{}"  # parameters of a strategy that has none but defaults
MAX_DRY_RUN_REQUESTS = 300  # of one dry run. With some parameters `zoomeye` makes thousands

DryRunKey = tuple[type["Strategy"], str, str | None]  # class, parameters other than the defaults as JSON, cache salt


class RowEstimator:
    """Estimates the rows that requests take at a time.

    Dry runs are kept. They run in a thread, one at a time, because each keeps crops of an image. API keys take turns.
    """

    def __init__(self) -> None:
        self._dry_runs: OrderedDict[DryRunKey, DryRun | None] = OrderedDict()
        self._queue = FairQueue(1)
        self._limiter = anyio.CapacityLimiter(1)

    async def estimate(
        self,
        stack: Sequence[Strategy],
        choices: int,
        *,
        grounding: bool = False,
        cache_salt: str | None = None,
        rows_at_once: int | None = None,
    ) -> int:
        """Estimate the rows of a request.

        Args:
            stack: Strategies, outermost first, a check included.
            choices: Choices of all prompts.
            grounding: Whether a branch without the image runs for the grounding.
            cache_salt: Separates the dry runs that are kept. Otherwise other API keys could measure which exist.
            rows_at_once: Rows that the request may take. Only as many choices count as fit into them, at least one.

        Returns:
            The estimate. A strategy whose requests depend on the image or the answer may take more or fewer rows. A
            strategy whose dry run fails or makes too many requests counts with its default parameters. If that dry run
            fails too, the strategy adds no rows.
        """
        dry_runs = [await self._get_dry_run(strategy, cache_salt) for strategy in stack]
        if rows_at_once is not None and choices > 1:
            choices = min(choices, max(1, rows_at_once // compute_rows(dry_runs, 1, grounding=grounding)))
        return compute_rows(dry_runs, choices, grounding=grounding)

    async def _get_dry_run(self, strategy: Strategy, cache_salt: str | None) -> DryRun | None:
        strategy_class = type(strategy)
        parameters = strategy.model_dump_json(exclude_defaults=True)
        result = await self._run_once((strategy_class, parameters, cache_salt))
        if result is None and parameters != DEFAULTS:
            result = await self._run_once((strategy_class, DEFAULTS, cache_salt))
        return result

    async def _run_once(self, key: DryRunKey) -> DryRun | None:
        strategy_class, parameters, cache_salt = key
        if key not in self._dry_runs:
            async with self._queue.hold(cache_salt or "", 1):
                if key not in self._dry_runs:
                    self._dry_runs[key] = await run_to_end(
                        try_dry_run, strategy_class, parameters, limiter=self._limiter
                    )
        self._dry_runs.move_to_end(key)
        while len(self._dry_runs) > MAX_DRY_RUNS:
            self._dry_runs.popitem(last=False)
        return self._dry_runs[key]


def compute_rows(dry_runs: Sequence[DryRun | None], choices: int, *, grounding: bool) -> int:
    """Compute the rows of a request.

    Args:
        dry_runs: Dry runs of its strategies, outermost first. None for one that failed.
        choices: Choices that run at a time.
        grounding: Whether a branch without the image runs for the grounding.

    Returns:
        The most rows at a time, those of the strategies' extra requests included.
    """
    rows, branches = 1, 0
    for result in reversed(dry_runs):
        if result is None:
            continue
        branches += len(result.branches)
        rows = max(rows * max(1, result.extra_rows), 1 + branches)  # its extra requests run through the inner ones
        if result.reads_drafts:  # each choice has a draft of its own
            rows *= choices
    return max(rows, choices * (1 + branches + grounding))


def try_dry_run(strategy_class: type[Strategy], parameters: str = DEFAULTS) -> DryRun | None:
    """Run a strategy on a blank image. Slow: call it in a thread.

    Args:
        strategy_class: Class of the strategy.
        parameters: Its parameters other than the defaults, as JSON.

    Returns:
        Its needs and costs, or None if it fails.
    """
    from decoding.pipeline.dry_run import dry_run

    try:
        return dry_run(strategy_class.model_validate_json(parameters), MAX_DRY_RUN_REQUESTS)
    except Exception as error:  # a third-party strategy that fails must not remove the others from the list
        log.warning("dry_run_failed", strategy=strategy_class.name, exc_info=error)
        return None
