"""List the methods of vLLM that the vLLM engine overrides, wraps or calls, and that differ between two releases.

    pip download --no-deps --dest wheels vllm==0.32.0 vllm==0.33.0
    python install/vllm_changes.py wheels/vllm-0.32.0*.whl wheels/vllm-0.33.0*.whl

A release is a wheel, or a folder that contains the package. vLLM is read and not imported, so that no GPU is needed.
The exit status is 1 if a method differs. `--diff` prints the differences.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Files of vLLM -> methods and functions. A test compares the list with the overrides and patches of the engine.
METHODS: dict[str, tuple[str, ...]] = {
    "vllm/v1/core/sched/scheduler.py": (
        "Scheduler.__init__",
        "Scheduler.add_request",
        "Scheduler.finish_requests",
        "Scheduler.schedule",
        "Scheduler.update_from_output",
        "Scheduler._get_local_prefix_cache_hit",
        "Scheduler._preempt_request",
        "Scheduler._reserve_prefill_lookahead",
        "Scheduler._update_after_schedule",
    ),
    "vllm/v1/core/sched/async_scheduler.py": (
        "AsyncScheduler._update_after_schedule",
        "AsyncScheduler._update_request_with_output",
    ),
    "vllm/v1/engine/core.py": ("EngineCore.step_with_batch_queue",),
    "vllm/v1/core/sched/request_queue.py": ("create_request_queue",),
    "vllm/v1/core/kv_cache_manager.py": ("KVCacheManager.truncate_computed_blocks",),
    "vllm/v1/core/kv_cache_coordinator.py": ("KVCacheCoordinator.get_num_blocks_to_allocate",),
    "vllm/v1/worker/gpu_model_runner.py": (
        "AsyncGPUModelRunnerOutput.__init__",
        "AsyncGPUModelRunnerOutput.get_output",
        "GPUModelRunner.load_model",
        "GPUModelRunner.initialize_kv_cache",
        "GPUModelRunner.execute_model",
        "GPUModelRunner.sample_tokens",
        "GPUModelRunner._bookkeeping_sync",
        "GPUModelRunner._cache_encoder_output",
        "GPUModelRunner._execute_mm_encoder",
        "GPUModelRunner._model_forward",
        "GPUModelRunner._sample",
    ),
    "vllm/v1/worker/cpu_model_runner.py": ("CPUModelRunner.load_model",),
    "vllm/v1/structured_output/backend_guidance.py": ("GuidanceBackend.compile_grammar", "GuidanceGrammar.check_error"),
    "vllm/v1/engine/async_llm.py": (
        "AsyncLLM.abort",
        "AsyncLLM.from_vllm_config",
        "AsyncLLM.shutdown",
        "AsyncLLM._add_request",
        "AsyncLLM._run_output_handler",
    ),
    "vllm/v1/engine/input_processor.py": ("InputProcessor.assign_request_id", "InputProcessor.process_inputs"),
    "vllm/sampling_params.py": ("SamplingParams._validate_structured_outputs",),
    "vllm/v1/engine/output_processor.py": (
        "OutputProcessor.propagate_error",
        "RequestOutputCollector.__init__",
        "RequestOutputCollector.get",
        "RequestOutputCollector.put",
    ),
    "vllm/v1/sample/sampler.py": ("Sampler.forward",),
    "vllm/model_executor/layers/attention/attention.py": ("Attention.forward",),
    "vllm/v1/attention/backends/cpu_attn.py": (
        "CPUAttentionBackendImpl.__init__",
        "CPUAttentionBackendImpl.do_kv_cache_update",
        "CPUAttentionBackendImpl.forward",
    ),
    "vllm/v1/attention/backends/flash_attn.py": ("FlashAttentionImpl.__init__", "FlashAttentionImpl.forward"),
    "vllm/model_executor/models/llama.py": ("LlamaDecoderLayer.forward", "LlamaModel.forward"),
    "vllm/model_executor/models/mistral.py": ("MistralDecoderLayer.forward",),
    "vllm/model_executor/models/qwen2.py": ("Qwen2DecoderLayer.forward", "Qwen2Model.forward"),
    "vllm/model_executor/models/qwen3.py": ("Qwen3DecoderLayer.forward",),
}


@dataclass(frozen=True)
class Method:
    """A method or function of one release."""

    source: str
    arguments: str


@dataclass(frozen=True)
class Change:
    """A method that differs. `old` or `new` is None where the release has no such method."""

    name: str
    old: Method | None
    new: Method | None

    def describe(self) -> str:
        """Return one line: what differs."""
        if self.old is None and self.new is None:
            return f"{self.name}: missing in both"
        if self.old is None or self.new is None:
            return f"{self.name}: {'added' if self.old is None else 'removed'}"
        lines = sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in self.list_differences())
        signature = ""
        if self.old.arguments != self.new.arguments:
            signature = f"; arguments ({self.old.arguments}) -> ({self.new.arguments})"
        return f"{self.name}: {lines} changed lines{signature}"

    def list_differences(self) -> list[str]:
        """Return the lines of a unified diff."""
        old, new = (each.source.splitlines() if each else [] for each in (self.old, self.new))
        return list(difflib.unified_diff(old, new, "old", "new", lineterm=""))


def read_source(release: Path, file: str) -> str | None:
    """Read a file of a release.

    Args:
        release: A wheel, or a folder with the package.
        file: Path within the release.

    Returns:
        The source, or None if the release has no such file.
    """
    if release.is_dir():
        path = release / file
        return path.read_text() if path.exists() else None
    with zipfile.ZipFile(release) as wheel:
        return wheel.read(file).decode() if file in wheel.namelist() else None


def find_method(source: str, name: str) -> Method | None:
    """Find a function, or a method as "Class.method", in a source file."""
    body: list[ast.stmt] = ast.parse(source).body
    found: ast.AST | None = None
    for part in name.split("."):
        found = next((node for node in reversed(body) if getattr(node, "name", None) == part), None)
        if found is None:
            return None
        body = getattr(found, "body", [])
    assert isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef), f"{name} is not a function"
    return Method(ast.unparse(found), ast.unparse(found.args))


def find_changes(old: Path, new: Path) -> Iterator[Change]:
    """Compare the methods of two releases. Comments and layout do not count.

    Yields:
        The methods that differ.
    """
    for file, names in METHODS.items():
        sources = read_source(old, file), read_source(new, file)
        for name in names:
            before, after = (None if source is None else find_method(source, name) for source in sources)
            if before != after or (before is None and after is None):
                yield Change(f"{file}: {name}", before, after)


def main() -> None:
    """Print the changes, and exit with status 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="wheel or folder of the release that the engine was tested with")
    parser.add_argument("new", type=Path, help="wheel or folder of another release")
    parser.add_argument("--diff", action="store_true", help="print the differences")
    options = parser.parse_args()
    changes = list(find_changes(options.old, options.new))
    for change in changes:
        print(change.describe())
        if options.diff:
            print("\n".join(change.list_differences()))
    print(f"{len(changes)} of {sum(map(len, METHODS.values()))} methods differ.")
    sys.exit(bool(changes))


if __name__ == "__main__":
    main()
