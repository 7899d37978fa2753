"""Patches of vLLM's model runner V1: build the rows of each step, and call the step hooks around forward and sampler.

The strategies act before vLLM's sampler, and not as one of its logits processors. The order is then that of
docs/design.md ("Order in a step"): strategies, penalties, temperature, cuts. vLLM's raw log-probabilities are those
after the strategies. This wrapper can recognise rows whose prompt is incomplete. A logits processor cannot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
import torch
from torch import Tensor

from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker.attention.attention_tap import GangAttentionTap
from decoding.vllm_engine.worker.early_exit_tap import GangEarlyExitTap
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.head_tap import GangHeadTap
from decoding.vllm_engine.worker.steering_tap import GangSteeringTap
from decoding.vllm_engine.worker.step_hook_runner import StepHookRunner
from decoding.vllm_engine.worker.step_rows import StepRows
from decoding.vllm_engine.worker.vision_attention_tap import CachedVisionAttentionTap

log = structlog.get_logger(__name__)

PATCH_MARK = "is_onlyseen_patch"


class WorkerExtension:
    """Methods that the server process calls through vLLM's collective_rpc. vLLM mixes the class into its worker."""

    model_runner: Any

    def onlyseen_free_states(self, handles: Sequence[str]) -> None:
        """Free strategy states."""
        for handle in handles:
            self.model_runner.step_hook_runner.states.free(handle)

    def onlyseen_load_vectors(self, handle: str, vectors: bytes, num_layers: int) -> None:
        """Keep steering vectors under a handle.

        Args:
            handle: Their handle.
            vectors: [layers, width] numbers in float32.
            num_layers: Layers.
        """
        runner = self.model_runner
        tensor = torch.frombuffer(bytearray(vectors), dtype=torch.float32).view(num_layers, -1)
        runner.step_hook_runner.states.put_vectors(handle, {"vectors": tensor.to(runner.device)})

    def onlyseen_worker_report(self) -> dict[str, Any]:
        """Report on the model runner of this process.

        Returns:
            The version of the model runner (None if it has no hooks), the names of the installed patches and, if there
            are hooks, what `StepHookRunner.get_stats` returns.
        """
        hooks: StepHookRunner | None = getattr(self.model_runner, "step_hook_runner", None)
        return {
            "runner": None if hooks is None else "v1",
            "patches": list_patches(self.model_runner),
            **({} if hooks is None else hooks.get_stats()),
        }


def install() -> None:
    """Wrap the methods of vLLM's model runner classes, once.

    Raises:
        AttributeError: The model runner lacks a method.
    """
    for runner in list_runner_classes():
        for name, wrap in PATCHES.items():
            method = vars(runner).get(name)
            if method is not None and not hasattr(method, PATCH_MARK):
                wrapped = functools.wraps(method)(wrap(method))
                setattr(wrapped, PATCH_MARK, True)
                setattr(runner, name, wrapped)
    if missing := [name for name in PATCHES if not hasattr(getattr(list_runner_classes()[0], name), PATCH_MARK)]:
        raise AttributeError(f"vLLM's model runner has no {', '.join(missing)}.")


def list_runner_classes() -> list[type[Any]]:
    """Return vLLM's model runner, and on a CPU build the runner that inherits from it."""
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not current_platform.is_cpu():
        return [GPUModelRunner]
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    return [GPUModelRunner, CPUModelRunner]


def list_patches(runner: Any) -> list[str]:
    """Return the names of the patches that are in place on a model runner."""
    return [name for name in PATCHES if hasattr(getattr(type(runner), name), PATCH_MARK)]


# Patches: each takes vLLM's method and returns the one that replaces it.


def patch_load_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_model(runner: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = original(runner, *args, **kwargs)
        if not hasattr(runner, "step_hook_runner"):
            runner.step_hook_runner = StepHookRunner(runner.device)
            install_taps(runner, runner.step_hook_runner, HeadShards.from_vllm())
        return loaded

    return load_model


def install_taps(runner: Any, hooks: StepHookRunner, shards: HeadShards) -> None:
    """Tap the loaded model. The server refuses strategies that need a tap which the model does not allow.

    Args:
        runner: vLLM's model runner.
        hooks: Receives the taps, and the reasons for those that are missing.
        shards: The heads that this process runs.
    """
    attention_tap: GangAttentionTap | None = None
    vision_attention_tap: CachedVisionAttentionTap | None = None
    steering_tap: GangSteeringTap | None = None
    try:
        attention_tap = GangAttentionTap.from_runner(runner, hooks.states, shards)
    except ValueError as reason:
        hooks.missing |= dict.fromkeys(
            ("edit_attention_scores", "gate_heads", "attention", "keep_image_tokens"),
            f"vLLM's attention of this model cannot be computed a second time: {reason}",
        )
    try:
        runner.vision_attention_tap = vision_attention_tap = CachedVisionAttentionTap.from_runner(runner, shards)
    except ValueError as reason:
        hooks.missing["vision_attention"] = f"vLLM's vision tower of this model cannot be tapped: {reason}"
    try:
        early_exit_tap = GangEarlyExitTap.from_runner(runner)
        hooks.add_early_exit_tap(early_exit_tap)
        steering_tap = GangSteeringTap(early_exit_tap.layers, hooks.states, runner.device)
        hooks.taps.append(steering_tap)
    except ValueError as reason:
        hooks.missing |= dict.fromkeys(
            ("early_exit_layers", "steer", "hidden_states"), f"vLLM's layers of this model cannot be tapped: {reason}"
        )
    try:
        head_tap = GangHeadTap.from_runner(
            runner, hooks.states, attention_tap, vision_attention_tap, steering_tap, shards
        )
        hooks.taps.append(head_tap)
    except ValueError as reason:
        hooks.missing |= dict.fromkeys(
            ("head_scales", "probe"), f"vLLM's heads of this model cannot be tapped: {reason}"
        )
    if attention_tap is not None:
        hooks.taps.append(attention_tap)
    if hooks.missing:
        log.warning("model_not_tapped", missing=hooks.missing)


def patch_initialize_kv_cache(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize_kv_cache(runner: Any, *args: Any, **kwargs: Any) -> None:
        original(runner, *args, **kwargs)
        if runner.device.type == "cpu":
            # The system gives out memory at the first write. Writing now shows at the start whether there is enough.
            for tensor in runner.kv_caches:
                tensor.zero_()

    return initialize_kv_cache


def patch_execute_encoder(original: Callable[..., Any]) -> Callable[..., Any]:
    def execute_encoder(runner: Any, *args: Any, **kwargs: Any) -> Any:
        tap: CachedVisionAttentionTap | None = getattr(runner, "vision_attention_tap", None)
        if tap is not None:
            tap.discard_pending()
        return original(runner, *args, **kwargs)

    return execute_encoder


def patch_cache_encoder_output(original: Callable[..., Any]) -> Callable[..., Any]:
    def cache_encoder_output(runner: Any, mm_hash: str, *args: Any, **kwargs: Any) -> None:
        original(runner, mm_hash, *args, **kwargs)
        tap: CachedVisionAttentionTap | None = getattr(runner, "vision_attention_tap", None)
        if tap is not None:
            tap.store(mm_hash, runner.encoder_cache)

    return cache_encoder_output


def patch_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(runner: Any, *args: Any, **kwargs: Any) -> Any:
        rows = runner.step_rows = build_step_rows(runner)
        if rows is None:
            return original(runner, *args, **kwargs)
        runner.step_hook_runner.before_forward(rows)
        hidden = original(runner, *args, **kwargs)
        runner.step_hook_runner.after_forward(rows)
        return hidden

    return forward


def patch_sample(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample(runner: Any, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows: StepRows | None = getattr(runner, "step_rows", None)
        with hide_idle_generators(runner):
            if rows is None:
                return original(runner, logits, *args, **kwargs)
            output = original(runner, runner.step_hook_runner.before_sampling(rows, logits), *args, **kwargs)
        runner.step_hook_runner.after_sampling(rows, output.sampled_token_ids)
        return output

    return sample


def patch_sample_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample_tokens(runner: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(runner, *args, **kwargs)
        if getattr(runner, "step_rows", None) is None or output is None:
            return output
        from decoding.vllm_engine.worker.async_output import add_token_info

        return add_token_info(output, runner.step_hook_runner.take_token_info())

    return sample_tokens


def patch_bookkeeping(original: Callable[..., Any]) -> Callable[..., Any]:
    def bookkeep(runner: Any, *args: Any, **kwargs: Any) -> Any:
        with hide_idle_generators(runner):
            return original(runner, *args, **kwargs)

    return bookkeep


PATCHES: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "load_model": patch_load_model,
    "initialize_kv_cache": patch_initialize_kv_cache,
    "_execute_mm_encoder": patch_execute_encoder,
    "_cache_encoder_output": patch_cache_encoder_output,
    "_model_forward": patch_forward,
    "_sample": patch_sample,
    "sample_tokens": patch_sample_tokens,
    "_bookkeeping_sync": patch_bookkeeping,
}


@contextmanager
def hide_idle_generators(runner: Any) -> Iterator[None]:
    """Hide the random generators of rows that sample nothing. vLLM would rewind them, which fails on a CPU.

    Yields:
        Nothing.
    """
    generators: dict[int, Any] = runner.input_batch.generators
    idle = [row for row in generators if runner.discard_request_mask.np[row]] if generators else []
    hidden = {row: generators.pop(row) for row in idle}
    try:
        yield
    finally:
        generators.update(hidden)


def build_step_rows(runner: Any) -> StepRows | None:
    """Describe the rows of the step.

    Args:
        runner: vLLM's model runner, before its forward pass.

    Returns:
        The rows; None if the step has no gang, which costs one look at each request.
    """
    batch = runner.input_batch
    count, ids = batch.num_reqs, batch.req_ids
    members: dict[int, Member] = {}
    for row in range(count):
        member = get_member(runner.requests[ids[row]])
        if member is not None:
            members[row] = member
    if not members:
        return None
    return StepRows(
        request_ids=list(ids[:count]),
        members=members,
        token_starts=runner.query_start_loc.np[: count + 1],
        num_computed_tokens=batch.num_computed_tokens_cpu[:count],
        num_generated_tokens=batch.num_tokens_no_spec[:count] - batch.num_prompt_tokens[:count],
        token_ids=batch.token_ids_cpu[:count],
        num_tokens=batch.num_tokens_no_spec[:count],
        is_sampling=~runner.discard_request_mask.np[:count],
    )


def get_member(request: Any) -> Member | None:
    """Read the member of a request in the model runner, once for each request."""
    try:
        return request.onlyseen_member  # type: ignore[no-any-return]
    except AttributeError:
        request.onlyseen_member = Member.from_sampling_params(request.sampling_params)
        return request.onlyseen_member  # type: ignore[no-any-return]
