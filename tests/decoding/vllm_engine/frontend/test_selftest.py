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
        "workers": [complete, worker],
    } | changes


@pytest.mark.parametrize(
    "change", [{"patches": ["_sample"]}, {"runner": None}, {"is_gang_scheduler": False}, {"async_scheduling": True}]
)
def test_engine_core_without_a_required_part_is_refused(change: dict[str, Any]) -> None:
    selftest.check_report(make_report())
    with pytest.raises(EngineFailed):
        selftest.check_report(make_report(**change))
