"""The adapter to vLLM's model runner V1: names this step's rows, and calls the stage around forward and sampler.

The strategies act before vLLM's sampler rather than as one of its logits processors. That is the order of the contract:
strategies, then penalties, temperature and the cuts. vLLM's raw log-probabilities are then those after the strategies,
and rows of prompts that are not read to their end, which no processor can tell, are known here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from torch import Tensor

from decoding.vllm_engine.heads import Heads
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.rows import Rows
from decoding.vllm_engine.stage import Stage

log = structlog.get_logger(__name__)

MARK = "is_onlyseen"


def install() -> None:
    """Wrap the methods of vLLM's runner classes, once.

    Raises:
        AttributeError: a runner has not the methods that we know.
    """
    for runner in classes():
        for name in HOOKS:
            method = vars(runner).get(name)
            if method is not None and not hasattr(method, MARK):
                wrapped = functools.wraps(method)(WRAPS[name](method))
                setattr(wrapped, MARK, True)
                setattr(runner, name, wrapped)
    if missing := [name for name in HOOKS if not hasattr(getattr(classes()[0], name), MARK)]:
        raise AttributeError(f"vLLM's model runner has no {', '.join(missing)}.")


def classes() -> list[type[Any]]:
    """The runner of vLLM, and where this is a CPU build that of its own, which inherits from it."""
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not current_platform.is_cpu():
        return [GPUModelRunner]
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    return [GPUModelRunner, CPUModelRunner]


def hooked(runner: Any) -> list[str]:
    """The hooks that are in place on this runner."""
    return [name for name in HOOKS if hasattr(getattr(type(runner), name), MARK)]


def loading(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_model(runner: Any, *arguments: Any, **named: Any) -> Any:
        loaded = original(runner, *arguments, **named)
        if not hasattr(runner, "stage"):
            runner.stage = Stage(runner.device)
            try:
                runner.stage.inside = Heads(runner, runner.stage.memories)
            except ValueError as reason:  # the server is told, and refuses what would need them
                log.warning("nothing can act inside this model", reason=str(reason))
        return loaded

    return load_model


def forwarding(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(runner: Any, *arguments: Any, **named: Any) -> Any:
        rows = runner.rows = rows_of(runner)
        if rows is None:
            return original(runner, *arguments, **named)
        runner.stage.before_forward(rows)
        hidden = original(runner, *arguments, **named)
        runner.stage.after_forward(rows)
        return hidden

    return forward


def sampling(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample(runner: Any, logits: Tensor, *arguments: Any, **named: Any) -> Any:
        rows: Rows | None = getattr(runner, "rows", None)
        with spared_generators(runner):
            if rows is None:
                return original(runner, logits, *arguments, **named)
            drawn = original(runner, runner.stage.mix(rows, logits), *arguments, **named)
        runner.stage.spread(rows, drawn.sampled_token_ids)
        return drawn

    return sample


def noting(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample_tokens(runner: Any, *arguments: Any, **named: Any) -> Any:
        output = original(runner, *arguments, **named)
        if getattr(runner, "rows", None) is not None and output is not None:
            output.notes = runner.stage.take_notes()
        return output

    return sample_tokens


def sparing_generators(original: Callable[..., Any]) -> Callable[..., Any]:
    def bookkeep(runner: Any, *arguments: Any, **named: Any) -> Any:
        with spared_generators(runner):
            return original(runner, *arguments, **named)

    return bookkeep


@contextmanager
def spared_generators(runner: Any) -> Iterator[None]:
    """Hides the seeds of rows that draw nothing: vLLM would wind them back, which fails on a CPU."""
    generators: dict[int, Any] = runner.input_batch.generators
    idle = [row for row in generators if runner.discard_request_mask.np[row]] if generators else []
    hidden = {row: generators.pop(row) for row in idle}
    try:
        yield
    finally:
        generators.update(hidden)


def rows_of(runner: Any) -> Rows | None:
    """None where the step has no gang in it, which costs one look at each request."""
    batch = runner.input_batch
    count, ids = batch.num_reqs, batch.req_ids
    members: dict[int, Member] = {}
    for row in range(count):
        member = member_of(runner.requests[ids[row]])
        if member is not None:
            members[row] = member
    if not members:
        return None
    prompts = batch.num_prompt_tokens[:count]
    return Rows(
        ids=list(ids[:count]),
        members=members,
        starts=runner.query_start_loc.np[: count + 1],
        computed=batch.num_computed_tokens_cpu[:count],
        prompts=prompts,
        generated=batch.num_tokens_no_spec[:count] - prompts,
        draws=~runner.discard_request_mask.np[:count],
    )


def member_of(request: Any) -> Member | None:
    """Read once for each request."""
    try:
        return request.member  # type: ignore[no-any-return]
    except AttributeError:
        request.member = Member.of(request.sampling_params)
        return request.member  # type: ignore[no-any-return]


WRAPS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "load_model": loading,
    "_model_forward": forwarding,
    "_sample": sampling,
    "sample_tokens": noting,
    "_bookkeeping_sync": sparing_generators,
}
HOOKS = tuple(WRAPS)
