"""Apply the tensor hooks of a stack of strategies, inner strategies first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor

from decoding.errors import OnlySeenError, StrategyFailed
from decoding.tensor_hooks import PER_ROW, Step, TensorHooks, Tensors


def apply_logits_hooks(
    stack: Sequence[TensorHooks],
    raw: Tensor,
    branches: Mapping[str, Tensor],
    states: Mapping[str, Tensors],
    position: Tensor,
    early_logits: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Apply the `logits` hooks. Each strategy receives its own branches, under its own names.

    Args:
        stack: Strategies, outermost first.
        raw: [..., vocab] logits of the main rows.
        branches: "strategy/name" -> [..., vocab] logits of the branches.
        states: Strategy name -> its state, each tensor [..., *shape].
        position: [..., 1] tokens generated so far.
        early_logits: Strategy name -> [..., exits, vocab] logits after the layers of its `early_exit_layers`.

    Returns:
        [..., vocab] scores. `StrategyFailed` names a strategy whose hook raises or does not keep the layout.
    """
    scores = raw
    for strategy in reversed(stack):
        if "logits" not in strategy.list_hooks():
            continue
        name = strategy.name
        early = early_logits.get(name) if early_logits else None
        step = Step(scores, raw, select_branches(strategy, branches), states.get(name, {}), position, early)
        scores = check_layout(strategy, call_logits(strategy, step), scores)
    return scores


@contextmanager
def attribute_errors(strategy: TensorHooks) -> Iterator[None]:
    """Turn exceptions of a hook into `StrategyFailed`, which names the strategy.

    Yields:
        Nothing.

    Raises:
        StrategyFailed: The hook raised another exception than the following.
        OnlySeenError: The hook raised it.
        OutOfMemoryError: The hook raised it. The device has no memory left.
    """
    try:
        yield
    except (OnlySeenError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise StrategyFailed(strategy.name, f"failed: {type(error).__name__}") from error


def call_logits(strategy: TensorHooks, step: Step) -> Tensor:
    """Call one `logits` hook.

    Args:
        strategy: The strategy.
        step: The step, with scores [..., vocab].

    Returns:
        The result of the hook. [..., vocab] is expected, and `check_layout` checks it.
    """
    with attribute_errors(strategy):
        return strategy.logits(step)


def check_layout(strategy: TensorHooks, after: Tensor, before: Tensor, hook: str = "logits") -> Tensor:
    """Return `after` if its shape, dtype and device are those of `before`.

    Args:
        strategy: The strategy whose hook returned `after`.
        after: Scores after the hook. The shape of `before` is expected.
        before: A tensor of the expected layout: the scores before the hook, [..., vocab] of `logits` or
            [rows, heads, keys] of `edit_attention_scores`, or any [rows, heads] for `gate_heads`.
        hook: Name of the hook.

    Returns:
        `after`, in the shape of `before`.

    Raises:
        StrategyFailed: `after` is no tensor, or its shape, dtype or device differ.
    """
    if not isinstance(after, Tensor):
        raise StrategyFailed(strategy.name, f"returned {type(after).__name__} from `{hook}` instead of a tensor")
    if (after.shape, after.dtype, after.device) != (before.shape, before.dtype, before.device):
        found, expected = (f"{each.dtype} {list(each.shape)} on {each.device}" for each in (after, before))
        raise StrategyFailed(strategy.name, f"returned {found} from `{hook}` instead of {expected}")
    return after


def find_invalid_values(scores: Tensor) -> str | None:
    """Describe why [..., vocab] scores cannot be sampled from, as in "returned nan logits", or return None."""
    if scores.isnan().any():
        return "returned nan logits"
    if (scores == torch.inf).any():
        return "returned infinite logits"
    if (scores == -torch.inf).all(dim=-1).any():
        return "left no token: all logits are -inf"
    return None


def find_invalid_strategy(
    stack: Sequence[TensorHooks],
    raw: Tensor,
    branches: Mapping[str, Tensor],
    states: Mapping[str, Tensors],
    position: Tensor,
    early_logits: Mapping[str, Tensor] | None = None,
) -> StrategyFailed | None:
    """Find the innermost strategy whose `logits` makes valid scores invalid.

    The check reads values, which costs a synchronisation on an accelerator. Engines check the final scores only, and
    call this function for rows that failed the check.

    Args:
        stack: Strategies, outermost first.
        raw: [..., vocab] logits of the main rows.
        branches: Qualified name of a branch -> [..., vocab] logits.
        states: Strategy name -> its state, tensors of [..., *shape].
        position: [..., 1] tokens generated so far.
        early_logits: Strategy name -> [..., exits, vocab].

    Returns:
        The error, or None if all strategies return valid scores.
    """
    if find_invalid_values(raw) is not None:
        return None
    for depth in range(len(stack) - 1, -1, -1):
        scores = apply_logits_hooks(stack[depth:], raw, branches, states, position, early_logits)
        if (problem := find_invalid_values(scores)) is not None:
            return StrategyFailed(stack[depth].name, problem)
    return None


def select_branch_names(strategy: TensorHooks, branches: Iterable[str]) -> list[str]:
    """Select the branches of a strategy, among names of the form "strategy/name"."""
    return [name for name in branches if name.startswith(f"{strategy.name}/")]


def select_branches(strategy: TensorHooks, branches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the branches of one strategy.

    Args:
        strategy: The strategy.
        branches: Qualified name -> [..., vocab] logits.

    Returns:
        Name that the strategy gave the branch -> [..., vocab] logits.
    """
    return {name.removeprefix(f"{strategy.name}/"): branches[name] for name in select_branch_names(strategy, branches)}


def batch_stacks(stacks: Sequence[Sequence[TensorHooks]], device: torch.device) -> tuple[TensorHooks, ...]:
    """Merge stacks with equal batch keys, one per row, into one stack for all rows."""
    return tuple(batch_parameters(rows, device) for rows in zip(*stacks, strict=True))


def batch_parameters(rows: Sequence[TensorHooks], device: torch.device) -> TensorHooks:
    """Merge strategies with equal batch keys. `PER_ROW` parameters that differ become float64 tensors [rows, 1]."""
    columns: dict[str, Tensor] = {}
    for name in rows[0].find_marked_fields(PER_ROW):
        numbers = [getattr(strategy, name) for strategy in rows]
        if len(set(numbers)) > 1:
            columns[name] = copy_numbers(numbers, torch.float64, device)[:, None]
    return rows[0].model_copy(update=columns) if columns else rows[0]


def copy_numbers(
    numbers: Sequence[float] | Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Copy numbers to a device, as [n] or [n, m]. `torch.tensor` would wait until the device has done its work."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def combine_head_scales(
    stack: Sequence[TensorHooks], states: Mapping[str, Tensors], shape: tuple[int, int]
) -> Tensor | None:
    """Multiply the head scales of all strategies of a stack.

    Args:
        stack: Strategies, outermost first.
        states: Strategy name -> its state.
        shape: (layers, heads) of the model.

    Returns:
        [layers, heads] scales; None if no strategy scales heads.

    Raises:
        StrategyFailed: Scales have another shape. Scales that broadcast would act on other heads than intended.
    """
    found: list[Tensor] = []
    for strategy in stack:
        with attribute_errors(strategy):
            scales = strategy.head_scales(states.get(strategy.name, {}))
        if scales is None:
            continue
        if scales.shape != shape:
            problem = f"returned {list(scales.shape)} from `head_scales` instead of {list(shape)}"
            raise StrategyFailed(strategy.name, problem)
        found.append(scales)
    return reduce(torch.mul, found) if found else None
