"""Branches that see a part of the image tokens: their attention is computed a second time, with a mask.

A dropped token keeps its place. No remaining token attends to it, which equals a prompt without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.kept_tokens import find_kept_tokens
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker.attention.paged_attention import AttentionCall
from decoding.vllm_engine.worker.attention.second_attention import AttentionContext
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure

MAX_QUERIES = 256  # tokens of a row in one call, which bounds its mask


@dataclass(frozen=True, slots=True, eq=False)
class PrunedTokens:
    """Tokens of a step that do not see dropped ones: the same number of each row."""

    rows: Tensor  # [n] rows of the step
    tokens: Tensor  # [n, queries] numbers among the tokens of the step
    positions: Tensor  # [n, queries] positions in prompt and answer
    is_kept: Tensor  # [layers, n, keys] true where a layer sees a key


class GangTokenPruning:
    """The `keep_image_tokens` hooks of one model runner.

    Args:
        context: The model and the strategy states.
    """

    def __init__(self, context: AttentionContext) -> None:
        self.context = context
        self._is_kept: dict[str, Tensor | None] = {}  # request id -> [layers, prompt]; None: everything
        self._pruned: list[PrunedTokens] = []

    @property
    def is_idle(self) -> bool:
        """Whether all tokens of this step see all others."""
        return not self._pruned

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Find the branches of the step that see a part of the image tokens.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._is_kept = {key: self._is_kept[key] for key in rows.request_ids if key in self._is_kept}
        single: list[tuple[int, int, Tensor]] = []  # row, first token and kept tokens, where one token runs
        self._pruned = []
        for row, member in rows.members.items():
            if member.pruning is None:
                continue
            try:
                is_kept = self._find_kept_tokens(rows.request_ids[row], member)
            except Exception as error:  # other requests of the step go on
                record_failure(token_info, rows.request_ids[row], error, "keep_image_tokens_failed")
                continue
            if is_kept is None:
                continue
            first, end = int(rows.token_starts[row]), int(rows.token_starts[row + 1])
            if end - first == 1:
                single.append((row, first, is_kept))
                continue
            for start in range(first, end, MAX_QUERIES):
                self._pruned.append(self._build([(row, start, is_kept)], min(MAX_QUERIES, end - start), rows))
        if single:
            self._pruned.append(self._build(single, 1, rows))

    def apply(self, call: AttentionCall) -> None:
        """Compute the attention of the tokens a second time, and write it into the output of the call."""
        for pruned in self._pruned:
            length, queries = pruned.is_kept.shape[2], pruned.tokens.shape[1]
            last = pruned.positions[:, -1]
            keys, values = call.gather_keys_and_values(pruned.rows, last, length)
            visible = torch.unflatten(call.build_mask(pruned.positions.flatten(), length), 0, (-1, queries))
            visible = visible & pruned.is_kept[call.layer][:, None]
            # A dropped token sees itself. Without any key its attention, which no token reads, would be nan.
            visible = visible | (torch.arange(length, device=last.device) == pruned.positions[..., None])
            query = call.query[pruned.tokens].transpose(1, 2)  # [n, heads, queries, head_dim]
            output = scaled_dot_product_attention(
                query, keys, values, visible[:, None], scale=call.scale, enable_gqa=True
            )
            call.output[pruned.tokens] = output.transpose(1, 2)

    def after_forward(self, _: StepRows, __: TokenInfo) -> None:
        """Drop the tokens of the step."""
        self._pruned = []

    def reset(self) -> None:
        """Drop the step."""
        self._is_kept, self._pruned = {}, []

    def _find_kept_tokens(self, request_id: str, member: Member) -> Tensor | None:
        """Return the [layers, prompt] tokens that a branch sees, once for each request. None: all."""
        if request_id in self._is_kept:
            return self._is_kept[request_id]
        assert member.pruning is not None
        handle, image_tokens = member.pruning.handle, self.context.find_image_tokens(request_id)
        is_kept = self._is_kept[request_id] = find_kept_tokens(
            member.pruning.strategy.build(),
            {} if handle is None else self.context.states.get(handle),
            image_tokens.index.to(self.context.device, non_blocking=True),
            image_tokens.count,
            self.context.num_layers,
        )
        return is_kept

    def _build(self, tokens: Sequence[tuple[int, int, Tensor]], queries: int, rows: StepRows) -> PrunedTokens:
        """Build the tokens of some rows.

        Args:
            tokens: Row, its first token among the tokens of the step, and the [layers, prompt] tokens that it sees.
            queries: Tokens of each row.
            rows: Rows of the step.

        Returns:
            The tokens.
        """
        offsets = [int(rows.num_computed_tokens[row]) - int(rows.token_starts[row]) for row, *_ in tokens]
        length = max(first + offset for (_, first, _), offset in zip(tokens, offsets, strict=True)) + queries
        numbers = [list(range(first, first + queries)) for _, first, _ in tokens]
        positions = [[number + offset for number in own] for own, offset in zip(numbers, offsets, strict=True)]
        # Tokens of the answer are seen.
        is_kept = [pad(own, (0, length - own.shape[1]), value=True) for _, _, own in tokens]
        return PrunedTokens(
            copy_numbers([row for row, *_ in tokens], torch.long, self.context.device),
            copy_numbers(numbers, torch.long, self.context.device),
            copy_numbers(positions, torch.long, self.context.device),
            torch.stack(is_kept, 1),
        )
