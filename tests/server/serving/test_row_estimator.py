"""Estimates of the rows of requests."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from decoding.claims.claim_check import ClaimCheck
from decoding.pipeline import dry_run
from decoding.pipeline.dry_run import DryRun
from decoding.requests import GenerateRequest
from decoding.strategies.agla import AGLA
from decoding.strategies.attention.vhr import VHR
from decoding.strategies.mvp import MVP
from decoding.strategies.vcd import VCD
from decoding.strategies.verify import Verify
from decoding.strategies.zoomeye import ZoomEye
from decoding.strategy import Program, Strategy
from server.serving import row_estimator
from server.serving.row_estimator import RowEstimator


@pytest.mark.parametrize(
    ("stack", "options", "rows"),
    [
        ((), {}, 1),
        ((), {"choices": 3}, 3),
        ((), {"choices": 2, "grounding": True}, 4),
        ((VCD(),), {"choices": 2}, 4),
        ((AGLA(), VCD()), {}, 3),
        ((VHR(),), {}, 2),  # both prompts of the probe
        ((MVP(),), {}, 9),
        ((MVP(),), {"choices": 2}, 9),  # the votes are taken once for all choices
        ((MVP(paths=5),), {}, 15),
        ((MVP(), VCD()), {}, 18),
        ((Verify(views=0),), {"choices": 2}, 4),  # a draft and a question for each choice
        ((Verify(),), {"choices": 2}, 4),  # the views are asked about one after the other
        ((Verify(debias=0.5),), {"choices": 2}, 6),  # a draft, and a question with and without the image
        ((ClaimCheck(views=0), VCD()), {}, 4),
        ((ClaimCheck(), VCD()), {}, 4),
        ((VCD(),), {"choices": 8, "rows_at_once": 5}, 4),  # two choices at a time
        ((AGLA(), VCD()), {"choices": 8, "rows_at_once": 2}, 3),  # one choice always runs
        ((ZoomEye(),), {}, 8),
        ((ZoomEye(cues="a," * 2_000),), {}, 8),  # too many requests for a dry run: as with the default parameters
    ],
)
async def test_rows_are_estimated_from_the_parameters(
    stack: tuple[Strategy, ...], options: dict[str, Any], rows: int
) -> None:
    assert await RowEstimator().estimate(stack, **{"choices": 1, **options}) == rows


async def test_dry_runs_are_not_shared_between_cache_salts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a request would reveal which strategies and parameters another API key has sent."""
    runs = list[Strategy]()
    monkeypatch.setattr(dry_run, "dry_run", lambda strategy, _: runs.append(strategy))
    estimator, stack = RowEstimator(), (MVP(paths=5),)
    for salt in ("first", "second", "second"):
        await estimator.estimate(stack, choices=1, cache_salt=salt)
    assert runs == [MVP(paths=5), MVP(), MVP(paths=5), MVP()]  # a dry run that fails is repeated with the defaults


async def test_kept_dry_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[Strategy]()
    monkeypatch.setattr(dry_run, "dry_run", lambda strategy, _: runs.append(strategy) or DryRun(frozenset(), (), {}))
    monkeypatch.setattr(row_estimator, "MAX_DRY_RUNS", 2)
    estimator = RowEstimator()
    for paths in (1, 2, 1, 3, 1, 2):
        await estimator.estimate((MVP(paths=paths),), choices=1)
    assert [strategy.paths for strategy in runs if isinstance(strategy, MVP)] == [1, 2, 3, 2]


async def test_keys_take_turns_in_dry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[float]()

    def run(strategy: Strategy, _: int) -> DryRun:
        assert isinstance(strategy, VCD)
        runs.append(strategy.alpha)
        time.sleep(0.01)
        return DryRun(frozenset(), (), {})

    monkeypatch.setattr(dry_run, "dry_run", run)
    estimator = RowEstimator()
    await estimator.estimate((VCD(alpha=0.5),), choices=1, cache_salt="second")
    flood = [
        asyncio.create_task(estimator.estimate((VCD(alpha=1 + number / 100),), choices=1, cache_salt="first"))
        for number in range(20)
    ]
    await asyncio.sleep(0)
    done = len(runs)
    await estimator.estimate((VCD(alpha=0.5),), choices=1, cache_salt="second")
    assert len(runs) == done, "a kept dry run needs no turn"
    await estimator.estimate((VCD(alpha=0.6),), choices=1, cache_salt="second")
    assert len(runs) <= done + 4
    await asyncio.gather(*flood)


async def test_dry_run_of_a_cancelled_request_keeps_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def run(strategy: Strategy, _: int) -> DryRun:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return DryRun(frozenset(), (), {})

    monkeypatch.setattr(dry_run, "dry_run", run)
    estimator = RowEstimator()
    for number in range(5):
        task = asyncio.create_task(estimator.estimate((VCD(alpha=1 + number),), choices=1))
        await asyncio.sleep(0.005)
        task.cancel()
    await estimator.estimate((VCD(alpha=9),), choices=1)
    assert (running, most) == (0, 1)


async def test_strategy_whose_dry_run_fails_adds_no_rows() -> None:
    class Failing(Strategy):
        name = "failing"
        paper = "none"

        def run(self, request: GenerateRequest) -> Program:
            raise ZeroDivisionError

    assert await RowEstimator().estimate((Failing(), VCD()), choices=1) == 2
