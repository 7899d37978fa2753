"""Checks at start: whether our parts are in place in vLLM's processes, and whether a gang stays in step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decoding.errors import EngineFailed
from decoding.outputs import Answer
from decoding.requests import GenerateRequest

REQUIRED_PATCHES = frozenset(
    {
        "load_model",
        "initialize_kv_cache",
        "_execute_mm_encoder",
        "_cache_encoder_output",
        "_model_forward",
        "_sample",
        "sample_tokens",
        "_bookkeeping_sync",
    }
)


def check_report(report: Mapping[str, Any], is_async: bool = False) -> None:
    """Check that vLLM runs what this engine needs.

    Args:
        report: Report of the engine core.
        is_async: Whether vLLM must schedule asynchronously.

    Raises:
        EngineFailed: A part is not in place.
    """
    for worker in report["workers"]:
        missing = REQUIRED_PATCHES - set(worker["patches"])
        if missing:
            raise EngineFailed(f"vLLM's model runner lacks the patches {', '.join(sorted(missing))}.")
        if worker["runner"] != "v1":
            raise EngineFailed("vLLM runs another model runner than V1.")
    if not report["is_gang_scheduler"]:
        raise EngineFailed(f"vLLM schedules with {report['scheduler']}, which does not keep branches together.")
    if {report["async_scheduling"], report["is_async_scheduler"]} != {is_async}:
        raise EngineFailed(f"vLLM does not schedule {'asynchronously' if is_async else 'synchronously'}.")


def check_lockstep(
    request: GenerateRequest, answer: Answer, before: Mapping[str, int], after: Mapping[str, int]
) -> None:
    """Check that the rows of the warm-up request sampled all tokens together.

    Args:
        request: The warm-up request.
        answer: Its answer.
        before: Counters of the scheduler before the request.
        after: Counters after it.

    Raises:
        EngineFailed: A row sampled a token without the other, or the answer is too short.
    """
    expected, in_step = request.sampling.max_tokens, after["tokens"] - before["tokens"]
    if len(answer.tokens) != expected or after["violations"] or (request.branches and in_step != expected):
        raise EngineFailed("vLLM did not keep the two rows of the self-test in step.")
