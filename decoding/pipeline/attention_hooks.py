"""Apply the `edit_attention_scores` hooks of a stack of strategies, inner strategies first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from decoding.pipeline.composition import attribute_errors, check_layout
from decoding.pipeline.logits_hooks import Failures, isolate_failures
from decoding.tensor_hooks import AttentionKeys, TensorHooks, Tensors

StatefulStack = Sequence[tuple[TensorHooks, Tensors]]  # innermost first; the tensors of the states are [rows, *shape]


def edit_attention_scores(stack: StatefulStack, keys: AttentionKeys, scores: Tensor) -> tuple[Tensor, Failures]:
    """Edit the scores of one layer. A hook that fails, fails its own row.

    Args:
        stack: Strategies of rows with equal batch keys.
        keys: Keys that the rows attend to.
        scores: [rows, heads, keys].

    Returns:
        [rows, heads, keys] scores, unchanged in rows that fail, and number of a row -> exception.
    """
    edited = scores

    def call(numbers: Sequence[int]) -> None:
        nonlocal edited
        if len(numbers) == len(scores):
            edited = apply_attention_hooks(stack, keys, scores)
            return
        (number,) = numbers
        row = slice(number, number + 1)
        states = [{name: tensor[row] for name, tensor in state.items()} for _, state in stack]
        own_stack = [(strategy, state) for (strategy, _), state in zip(stack, states, strict=True)]
        own = apply_attention_hooks(
            own_stack, replace(keys, image_token_index=keys.image_token_index[row]), scores[row]
        )
        edited = torch.cat([edited[:number], own, edited[number + 1 :]])

    failures = isolate_failures(range(len(scores)), call)
    return edited, failures


def apply_attention_hooks(stack: StatefulStack, keys: AttentionKeys, scores: Tensor) -> Tensor:
    """Apply the hooks to all rows.

    Args:
        stack: Strategies with their states.
        keys: Keys that the rows attend to.
        scores: [rows, heads, keys].

    Returns:
        [rows, heads, keys]. `StrategyFailed` names a strategy whose hook raises or does not keep the layout.
    """
    for strategy, state in stack:
        with attribute_errors(strategy):
            edited = strategy.edit_attention_scores(scores, keys, state)
        scores = check_layout(strategy, edited, scores, "edit_attention_scores")
    return scores
