"""Strategy hooks inside one pass of the model: edited attention, early exits, and tokens that branches do not see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from decoding.hf_engine.kv_cache.aligned_cache import AlignedCache
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.request import RequestState
from decoding.hf_engine.taps.attention import AttentionEdit, EditScores
from decoding.pipeline.attention_hooks import (
    StatefulStack,
    batch_attention_stacks,
    edit_attention,
)
from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.early_exits import EarlyLogits
from decoding.requests import MAIN
from decoding.tensor_hooks import AttentionKeys

MAX_EDITED_TOKENS = 64  # of a prompt, in one call of the hooks
PromptOffsets = Mapping[int, tuple[int, int]]  # row -> keys of the pass before and after those of the row's prompt


class EditGroup:
    """Main rows whose attention one call of the hooks edits: requests with equal batch keys."""

    def __init__(self, model: Model, rows: Sequence[int], requests: Sequence[RequestState]) -> None:
        self.rows = rows
        self.requests = requests
        self.num_layers = model.num_layers
        self.device = model.device
        self.statistics = model.attention_statistics
        self.index = to_row_index(rows, model.device)
        self.stack = batch_attention_stacks([request.attention_stack for request in requests])

    def build_edit(self, newest: Mapping[int, int], offsets: PromptOffsets, *, is_step: bool) -> AttentionEdit:
        """Build the edit of the newest tokens of one pass.

        Args:
            newest: Row -> position in the pass of its newest token.
            offsets: Row -> keys of the pass before and after those of its prompt.
            is_step: Whether the keys after the prompt are those of the answer. They are padding otherwise.

        Returns:
            The edit.
        """
        image_token_index = torch.stack(
            [
                pad(request.image_token_index, offsets[row], value=-1)
                for row, request in zip(self.rows, self.requests, strict=True)
            ]
        )
        newest_positions = copy_numbers([newest[row] for row in self.rows], torch.long, self.device)
        generated = None
        if is_step:
            num_keys = image_token_index.shape[1]
            starts = copy_numbers([num_keys - offsets[row][1] for row in self.rows], torch.long, self.device)
            generated = torch.arange(num_keys, device=self.device) >= starts[:, None]
        keys = AttentionKeys(image_token_index, 0, self.num_layers, generated, statistics=self.statistics)
        edit_scores = build_edit_scores(self.stack, self.requests, keys)
        return AttentionEdit(self.index, newest_positions[:, None], edit_scores)


def build_question_edits(
    model: Model, row: int, request: RequestState, length: int, offset: tuple[int, int]
) -> list[AttentionEdit]:
    """Build the edits of a prompt's tokens after its last image, without its newest token.

    Args:
        model: The model.
        row: Row of the prompt in the pass.
        request: The request.
        length: Length of the prompt.
        offset: Keys of the pass before and after those of the prompt.

    Returns:
        The edits, of at most `MAX_EDITED_TOKENS` tokens each.
    """
    edits = []
    index = pad(request.image_token_index, offset, value=-1)
    positions = range(request.question_start, length - 1)
    for start in range(0, len(positions), MAX_EDITED_TOKENS):
        tokens = positions[start : start + MAX_EDITED_TOKENS]
        count = len(tokens)
        stack = [
            (strategy, {name: tensor.expand(count, *tensor.shape) for name, tensor in state.items()})
            for strategy, state in request.question_stack
        ]
        keys = AttentionKeys(index.expand(count, -1), 0, model.num_layers, statistics=model.attention_statistics)
        edit_scores = build_edit_scores(stack, [request] * count, keys)
        positions_tensor = copy_numbers(tokens, torch.long, model.device)[None]
        edits.append(AttentionEdit(slice(row, row + 1), positions_tensor, edit_scores))
    return edits


def build_edit_scores(stack: StatefulStack, requests: Sequence[RequestState], keys: AttentionKeys) -> EditScores:
    """Build the function of one edit. A hook that fails, fails its own request.

    Args:
        stack: Strategies with their states, [n, *shape].
        requests: Request of each token.
        keys: Keys that the n tokens attend to. Their layer is replaced.

    Returns:
        Function of a layer, its scores, [n, heads, keys] before and after, and the [n, keys] that the mask leaves. It
        also returns [n, heads] factors of the head outputs, or None for all 1.
    """

    def edit_scores(layer: int, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor | None]:
        device = scores.device
        own_keys = replace(
            keys,
            image_token_index=keys.image_token_index.to(device),
            layer=layer,
            generated=None if keys.generated is None else keys.generated.to(device),
            visible=visible,
        )
        edited, gates, failures = edit_attention(stack, own_keys, scores)
        for number, error in failures.items():
            requests[number].failure = error
        return edited, gates

    return edit_scores


class PassHookRunner:
    """The hooks for the rows of a pass, given as requests and prompt names. Strategies act on the main rows."""

    def __init__(self, model: Model, rows: Sequence[tuple[RequestState, str]]) -> None:
        self.model = model
        self._num_rows = len(rows)
        self._main_rows = {number: request for number, (request, name) in enumerate(rows) if name == MAIN}
        self._kept_tokens = {
            number: request.kept_tokens[name]
            for number, (request, name) in enumerate(rows)
            if name in request.kept_tokens
        }
        self._exits = {
            number: request.early_exits for number, request in self._main_rows.items() if request.early_exits
        }
        groups: dict[object, list[int]] = defaultdict(list)
        for number, request in self._main_rows.items():
            if request.attention_stack:
                groups[request.attention_batch_key].append(number)
        self._edit_groups = [
            EditGroup(model, numbers, [self._main_rows[number] for number in numbers]) for numbers in groups.values()
        ]

    @contextmanager
    def apply_to_prefill(self, lengths: Sequence[int]) -> Iterator[EarlyLogits]:
        """Apply the hooks to a pass over right-padded prompts.

        Args:
            lengths: Length of each prompt.

        Yields:
            Early logits. They are filled when the block ends.
        """
        newest = {row: length - 1 for row, length in enumerate(lengths)}
        offsets = {row: (0, max(lengths) - length) for row, length in enumerate(lengths)}
        question_edits = [
            edit
            for row, request in self._main_rows.items()
            if request.question_stack
            for edit in build_question_edits(self.model, row, request, lengths[row], offsets[row])
        ]
        edits = [*question_edits, *(group.build_edit(newest, offsets, is_step=False) for group in self._edit_groups)]
        with self._apply(newest, edits) as early_logits:
            yield early_logits

    @contextmanager
    def apply_to_step(self, cache: AlignedCache) -> Iterator[None]:
        """Apply the hooks to a pass over one token per row. Early logits are stored in the requests."""
        if not (self._edit_groups or self._exits or self._kept_tokens):
            yield
            return
        columns = sum(cache.count_columns_around(0, 0))
        device = self.model.device
        hidden_keys = torch.zeros(self.model.num_layers, self._num_rows, columns, dtype=torch.bool, device=device)
        for row, kept in self._kept_tokens.items():
            before, after = cache.count_columns_around(row, kept.shape[1])
            hidden_keys[:, row, before : columns - after] = ~kept
        offsets = {
            row: cache.count_columns_around(row, len(request.image_token_index))
            for row, request in self._main_rows.items()
        }
        newest = dict.fromkeys(self._main_rows, 0)
        edits = [group.build_edit(newest, offsets, is_step=True) for group in self._edit_groups]
        with self._apply(newest, edits, hidden_keys if self._kept_tokens else None) as early_logits:
            yield
        for row, own_logits in early_logits.items():
            self._main_rows[row].early_logits = own_logits

    @contextmanager
    def _apply(
        self, newest: Mapping[int, int], edits: Sequence[AttentionEdit], hidden_keys: Tensor | None = None
    ) -> Iterator[EarlyLogits]:
        with (
            self.model.attention_tap.edit(edits, hidden_keys),
            self.model.early_exit_tap.capture(self._exits, newest) as early_logits,
        ):
            yield early_logits


def to_row_index(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """Convert row numbers to an index.

    Args:
        rows: At least one row of the pass, ascending.
        device: Device of a tensor.

    Returns:
        A slice if the rows are evenly spaced, because it copies no keys and values. Else a tensor [len(rows)].
    """
    stride = rows[1] - rows[0] if len(rows) > 1 else 1
    spaced = range(rows[0], rows[-1] + 1, stride)
    return slice(spaced.start, spaced.stop, stride) if list(spaced) == list(rows) else torch.tensor(rows, device=device)
