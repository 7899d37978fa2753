"""From our settings to vLLM's, and what of vLLM's would break a gang."""

from __future__ import annotations

import hashlib
import inspect
import os
from types import ModuleType
from typing import Any

from decoding.errors import Unsupported
from decoding.vllm_engine import projection
from decoding.vllm_engine.plugin import ASKED
from decoding.vllm_engine.settings import VllmSettings

GIB = 1 << 30
STEP_TOKENS = 2048
MOST_PICTURES = 64

ENVIRONMENT = {
    ASKED: "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other runner has other hooks
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # the server has threads
    "VLLM_NO_USAGE_STATS": "1",
}
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    # On a CPU the model shares the process of the scheduler; one message less on the way of every token.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def prepare_environment() -> None:
    """For vLLM's processes, which inherit it."""
    os.environ.update(ENVIRONMENT)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def arguments(settings: VllmSettings, context: int, is_cpu: bool) -> dict[str, Any]:
    """Of vLLM's AsyncEngineArgs. `context`: tokens, prompt and answer together."""
    step_tokens = settings.step_tokens or STEP_TOKENS
    sizes = {
        "num_gpu_blocks_override": settings.cache_blocks,
        "block_size": settings.block_tokens,
        "kv_cache_memory_bytes": settings.cache_bytes or (GIB if is_cpu else None),
    }
    return {
        "model": settings.model,
        "dtype": "float32" if settings.dtype == "auto" and is_cpu else settings.dtype,
        "max_model_len": context,
        "max_num_seqs": settings.max_rows,
        # Room for the two prompts of a probe in one step, beyond what other steps are given.
        "max_num_batched_tokens": max(2 * context, step_tokens),
        "max_num_scheduled_tokens": step_tokens,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": settings.prefix_cache,
        "scheduler_cls": settings.scheduler,
        "worker_extension_cls": "decoding.vllm_engine.worker.WorkerExtension",
        "async_scheduling": False,  # a step is planned from the last one's tokens, and a lone token can be dropped
        "distributed_executor_backend": "uni",
        "mm_processor_cache_gb": 0,  # pixels come ready from our own encoder
        "mm_device_do_normalize": False,  # and normalised
        "limit_mm_per_prompt": {"image": MOST_PICTURES},
        "max_logprobs": 20,
        "structured_outputs_config": {"backend": "guidance"},  # reads schemas as the other engine does
        # Counts for vLLM's cache of compiled models: one that was compiled without our heads must not be found in it.
        "additional_config": {"onlyseen": fingerprint(projection)},
        "enforce_eager": is_cpu if settings.compiled is None else not settings.compiled,
        "disable_log_stats": True,
        "enable_log_requests": False,
        **{name: value for name, value in sizes.items() if value is not None},
    }


def fingerprint(module: ModuleType) -> str:
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()


def check(config: Any) -> None:
    """vLLM's whole configuration, whatever it came from.

    Raises:
        Unsupported: something in it would break a gang.
    """
    breaking = {
        "speculative decoding drafts for rows whose tokens their main row chooses": config.speculative_config,
        "pipeline parallelism runs several steps at once": config.parallel_config.pipeline_parallel_size > 1,
        "tensor parallelism was not tested": config.parallel_config.tensor_parallel_size > 1,
        "data parallelism may part a gang": config.parallel_config.data_parallel_size > 1,
        "a KV connector brings in caches of single members": config.kv_transfer_config,
        "an encoder connector delays single members": getattr(config, "ec_transfer_config", None),
        "the priority policy preempts single members": config.scheduler_config.policy != "fcfs",
        "asynchronous scheduling cannot drop a token": config.scheduler_config.async_scheduling,
        "the V2 model runner has other hooks": getattr(config, "use_v2_model_runner", False),
        "LoRA was not tested": config.lora_config,
    }
    for reason, is_set in breaking.items():
        if is_set:
            raise Unsupported(f"This configuration of vLLM cannot keep the branches of a request together: {reason}.")
