"""Reports of the engine core with which the engine refuses to start. No vLLM is needed."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.errors import EngineFailed
from decoding.vllm_engine.frontend import selftest


def make_report(**changes: Any) -> dict[str, Any]:
    worker = {"runner": "v1", "patches": sorted(selftest.REQUIRED_PATCHES)}
    complete = dict(worker)
    worker |= {name: changes.pop(name) for name in list(changes) if name in worker}
    return {
        "scheduler": "GangScheduler",
        "is_gang_scheduler": True,
        "async_scheduling": False,
        "is_async_scheduler": False,
        "workers": [complete, worker],
    } | changes


@pytest.mark.parametrize(
    "change",
    [
        {"patches": ["_sample"]},
        {"runner": None},
        {"is_gang_scheduler": False},
        {"async_scheduling": True},
        {"is_async_scheduler": True},
    ],
)
def test_engine_core_without_a_required_part_is_refused(change: dict[str, Any]) -> None:
    selftest.check_report(make_report())
    with pytest.raises(EngineFailed):
        selftest.check_report(make_report(**change))


def test_engine_core_that_ignores_asynchronous_scheduling_is_refused() -> None:
    report = make_report(async_scheduling=True, is_async_scheduler=True)
    selftest.check_report(report, is_async=True)
    for missing in ("async_scheduling", "is_async_scheduler"):
        with pytest.raises(EngineFailed, match="does not schedule asynchronously"):
            selftest.check_report(report | {missing: False}, is_async=True)
