"""Apply the `edit_attention_scores` and `gate_heads` hooks of a stack of strategies, inner strategies first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decoding.pipeline.composition import attribute_errors, check_layout
from decoding.pipeline.logits_hooks import Failures, isolate_failures, stack_states
from decoding.tensor_hooks import AttentionKeys, TensorHooks, Tensors

# Innermost first. The tensors of the states are [*shape] of one request, or [rows, *shape].
StatefulStack = Sequence[tuple[TensorHooks, Tensors]]


def select_attention_stack(stack: Sequence[TensorHooks], states: Mapping[str, Tensors]) -> StatefulStack:
    """Select the strategies of a request that edit attention.

    Args:
        stack: Strategies, outermost first.
        states: Strategy name -> its state, tensors of any [*shape].

    Returns:
        The strategies with their states, innermost first.
    """
    return [(strategy, states.get(strategy.name, {})) for strategy in reversed(stack) if strategy.acts_on_attention()]


def select_question_stack(stack: StatefulStack) -> StatefulStack:
    """Select the strategies that also edit the attention of the prompt's tokens after its last image."""
    return [(strategy, state) for strategy, state in stack if strategy.edits_question]


def find_question_start(is_image: Tensor) -> int:
    """Return the position after the last image token of a prompt.

    Args:
        is_image: [prompt] true at image tokens, on the CPU.

    Returns:
        The position; the length of a prompt without images.
    """
    places = is_image.nonzero()
    return int(places.max()) + 1 if len(places) else len(is_image)


def compute_attention_batch_key(stack: StatefulStack) -> object:
    """Return a key that is equal for requests which share calls of the hooks.

    Args:
        stack: Result of `select_attention_stack`.

    Returns:
        The key, from the batch keys of the strategies and the shapes of their states.
    """
    return tuple(
        (strategy.batch_key(), tuple((name, tensor.shape) for name, tensor in state.items()))
        for strategy, state in stack
    )


def batch_attention_stacks(stacks: Sequence[StatefulStack]) -> StatefulStack:
    """Merge stacks with equal batch keys, one per row, into one stack with states of [rows, *shape]."""
    return [
        (strategy, stack_states([own[depth][1] for own in stacks])) for depth, (strategy, _) in enumerate(stacks[0])
    ]


def edit_attention(stack: StatefulStack, keys: AttentionKeys, scores: Tensor) -> tuple[Tensor, Tensor | None, Failures]:
    """Edit the scores of one layer, and gate its heads. A hook that fails, fails its own row.

    Args:
        stack: Strategies of rows with equal batch keys.
        keys: Keys that the rows attend to.
        scores: [rows, heads, keys].

    Returns:
        [rows, heads, keys] scores, [rows, heads] factors of the head outputs or None for all 1, and number of a row ->
        exception. Rows that fail keep their scores, and their factors are 1.
    """
    edited, gates = scores, None
    if any("gate_heads" in strategy.list_hooks() for strategy, _ in stack):
        gates = torch.ones_like(scores[..., 0])

    def call(numbers: Sequence[int]) -> None:
        nonlocal edited, gates
        if len(numbers) == len(scores):
            edited, gates = apply_attention_hooks(stack, keys, scores)
            return
        (number,) = numbers
        row = slice(number, number + 1)
        states = [{name: tensor[row] for name, tensor in state.items()} for _, state in stack]
        own_stack = [(strategy, state) for (strategy, _), state in zip(stack, states, strict=True)]
        own, own_gates = apply_attention_hooks(own_stack, keys.select_rows(row), scores[row])
        edited = torch.cat([edited[:number], own, edited[number + 1 :]])
        if gates is not None and own_gates is not None:
            gates = torch.cat([gates[:number], own_gates, gates[number + 1 :]])

    failures = isolate_failures(range(len(scores)), call)
    return edited, gates, failures


def apply_attention_hooks(stack: StatefulStack, keys: AttentionKeys, scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """Apply the hooks to all rows.

    Args:
        stack: Strategies with their states.
        keys: Keys that the rows attend to.
        scores: [rows, heads, keys].

    Returns:
        [rows, heads, keys] scores, and [rows, heads] factors of the head outputs, or None for all 1. `StrategyFailed`
        names a strategy whose hook raises or does not keep the layout.
    """
    gates: Tensor | None = None
    for strategy, state in stack:
        with attribute_errors(strategy):
            own_gates = strategy.gate_heads(scores, keys, state)
            edited = strategy.edit_attention_scores(scores, keys, state)
        if own_gates is not None:
            own_gates = check_layout(strategy, own_gates, scores[..., 0], "gate_heads")
            gates = own_gates if gates is None else gates * own_gates
        scores = check_layout(strategy, edited, scores, "edit_attention_scores")
    return scores, gates
