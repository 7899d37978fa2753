"""What the server process can ask of vLLM's engine core, which schedules."""

from __future__ import annotations

from typing import Any

from decoding.vllm_engine.counters import Counters

REPORT = "onlyseen_report"


def install() -> None:
    """Teach vLLM's engine core to report, once."""
    from vllm.v1.engine.core import EngineCore

    if not hasattr(EngineCore, REPORT):
        setattr(EngineCore, REPORT, report)


def report(core: Any) -> dict[str, Any]:
    """The scheduler in use, its limits and counters, and what it still holds."""
    scheduler = core.scheduler
    gangs, counters = getattr(scheduler, "gangs", ()), getattr(scheduler, "counters", Counters())
    return {
        "scheduler": type(scheduler).__name__,
        "is_gang_scheduler": hasattr(scheduler, "gangs"),
        "async_scheduling": bool(core.vllm_config.scheduler_config.async_scheduling),
        "counters": counters.told(),
        "gangs": len(gangs),
        "requests": len(scheduler.requests),
        "free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks,
        "block_size": scheduler.block_size,
        "most_rows": scheduler.max_num_running_reqs,
        "most_tokens": scheduler.scheduler_config.max_num_batched_tokens,
        "step_tokens": scheduler.max_num_scheduled_tokens,
        "encoder_tokens": scheduler.max_num_encoder_input_tokens,
        "worker": core.collective_rpc("onlyseen_told")[0],
    }
