"""Strategy hooks inside one pass of the model: edited attention, early exits, and tokens that branches do not see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from decoding.hf_engine.kv_cache.aligned_cache import AlignedCache
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.request import RequestState
from decoding.hf_engine.taps.attention import AttentionEdit, EditScores
from decoding.pipeline.attention_hooks import batch_attention_stacks, edit_attention_scores
from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.early_exits import EarlyLogits
from decoding.requests import MAIN
from decoding.tensor_hooks import AttentionKeys

PromptOffsets = Mapping[int, tuple[int, int]]  # row -> keys of the pass before and after those of the row's prompt


class EditGroup:
    """Main rows whose attention one call of the `edit_attention_scores` hooks edits: requests with equal batch keys."""

    def __init__(self, model: Model, rows: Sequence[int], requests: Sequence[RequestState]) -> None:
        self.rows = rows
        self.requests = requests
        self.num_layers = model.num_layers
        self.device = model.device
        self.index = to_row_index(rows, model.device)
        self.stack = batch_attention_stacks([request.attention_stack for request in requests])

    def build_edit(self, newest: Mapping[int, int], offsets: PromptOffsets) -> AttentionEdit:
        """Build the edit of one pass.

        Args:
            newest: Row -> position in the pass of its newest token.
            offsets: Row -> keys of the pass before and after those of its prompt.

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
        return AttentionEdit(self.index, newest_positions, self._build_edit_scores(image_token_index))

    def _build_edit_scores(self, image_token_index: Tensor) -> EditScores:
        """Build the function of one pass. A hook that fails, fails its own request.

        Args:
            image_token_index: [rows, keys], as in `AttentionKeys`.

        Returns:
            Function of a layer and its scores, [rows, heads, keys] before and after.
        """

        def edit_scores(layer: int, scores: Tensor) -> Tensor:
            keys = AttentionKeys(image_token_index.to(scores.device), layer, self.num_layers)
            edited, failures = edit_attention_scores(self.stack, keys, scores)
            for number, error in failures.items():
                self.requests[number].failure = error
            return edited

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
        with self._apply(newest, offsets) as early_logits:
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
        with self._apply(newest, offsets, hidden_keys if self._kept_tokens else None) as early_logits:
            yield
        for row, own_logits in early_logits.items():
            self._main_rows[row].early_logits = own_logits

    @contextmanager
    def _apply(
        self, newest: Mapping[int, int], offsets: PromptOffsets, hidden_keys: Tensor | None = None
    ) -> Iterator[EarlyLogits]:
        edits = [group.build_edit(newest, offsets) for group in self._edit_groups]
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
