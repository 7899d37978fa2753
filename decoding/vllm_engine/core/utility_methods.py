"""Methods of vLLM's engine core that the server process calls: the report, and an abort that counts tokens."""

from __future__ import annotations

from typing import Any

from decoding.vllm_engine.core.gangs import GangCounters

REPORT_METHOD = "onlyseen_report"
ABORT_METHOD = "onlyseen_abort_and_count_tokens"


def install() -> None:
    """Add our methods to vLLM's engine core."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, REPORT_METHOD, build_report)
    setattr(EngineCore, ABORT_METHOD, abort_and_count_tokens)


def abort_and_count_tokens(core: Any, request_ids: list[str]) -> int | None:
    """Abort a gang between two steps, and count the tokens that its main row has generated.

    Args:
        core: vLLM's EngineCore.
        request_ids: Ids of the gang's engine requests. The last one is that of the main row.

    Returns:
        Generated tokens of the main row, those included that the server process has not received and that of a step
        that still runs; None if it has ended.
    """
    main_request = core.scheduler.requests.get(request_ids[-1])
    count = None if main_request is None else main_request.num_output_tokens + main_request.num_output_placeholders
    core.abort_requests(request_ids)
    return count


def build_report(core: Any) -> dict[str, Any]:
    """Describe the scheduler, its limits and counters, and the requests and blocks that it holds.

    Args:
        core: vLLM's EngineCore.

    Returns:
        Plain data. Tokens, rows and blocks are counts.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    scheduler = core.scheduler
    gangs, counters = getattr(scheduler, "gangs", ()), getattr(scheduler, "counters", GangCounters())
    block_pool = scheduler.kv_cache_manager.block_pool
    return {
        "scheduler": type(scheduler).__name__,
        "is_gang_scheduler": hasattr(scheduler, "gangs"),
        "async_scheduling": bool(core.vllm_config.scheduler_config.async_scheduling),
        "is_async_scheduler": isinstance(scheduler, AsyncScheduler),
        "counters": counters.as_dict(),
        "gangs": len(gangs),
        "requests": len(scheduler.requests),
        "free_blocks": block_pool.get_num_free_blocks(),
        "blocks": block_pool.num_gpu_blocks,
        "block_size": scheduler.block_size,
        "max_rows": scheduler.max_num_running_reqs,
        "max_batched_tokens": scheduler.scheduler_config.max_num_batched_tokens,
        "workers": core.collective_rpc("onlyseen_worker_report"),
    }
