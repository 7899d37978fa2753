"""Strategy hooks inside one pass of the model: edited attention, steering, early exits, and pruned tokens."""

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
from decoding.hf_engine.taps.steering import SteeringEdit
from decoding.pipeline.attention_hooks import (
    StatefulStack,
    batch_attention_stacks,
    edit_attention,
)
from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.early_exits import EarlyLogits
from decoding.pipeline.steering import expand_steering_stack, reads_layer_input, steer_outputs
from decoding.requests import MAIN
from decoding.tensor_hooks import AttentionKeys, LayerPlace

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


def build_steering_edit(
    requests: Sequence[RequestState], stack: StatefulStack, rows: slice | Tensor, tokens: slice
) -> SteeringEdit:
    """Build an edit of what leaves the layers. A hook that fails, fails its own request.

    Args:
        requests: Request of each edited token. Their stacks select the same places.
        stack: Strategies with their states, [tokens, *shape].
        rows: [n] rows of the pass.
        tokens: Positions in the pass, as many of each row.

    Returns:
        The edit.
    """

    def steer(place: LayerPlace, outputs: Tensor, layer_input: Tensor | None) -> Tensor:
        edited, failures = steer_outputs(stack, place, outputs, layer_input)
        for number, error in failures.items():
            requests[number].failure = error
        return edited

    return SteeringEdit(rows, tokens, requests[0].steered_places, steer, reads_layer_input(stack))


def build_prompt_steering(row: int, request: RequestState, length: int) -> list[SteeringEdit]:
    """Build the edits of a prompt: of its tokens, and of those of the answer prefix after them.

    Args:
        row: Row of the prompt in the pass.
        request: The request.
        length: Length of the prompt, with the answer prefix.

    Returns:
        The edits of parts of the prompt that have tokens and strategies.
    """
    start = length - len(request.answer_start.ids)
    edits = []
    for stack, tokens in (
        (request.prompt_steering_stack, slice(0, start)),
        (request.steering_stack, slice(start, length)),
    ):
        count = tokens.stop - tokens.start
        if not stack or not count:
            continue
        expanded = expand_steering_stack(stack, count)
        edits.append(build_steering_edit([request] * count, expanded, slice(row, row + 1), tokens))
    return edits


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
        steered: dict[object, list[int]] = defaultdict(list)
        for number, request in self._main_rows.items():
            if request.attention_stack:
                groups[request.attention_batch_key].append(number)
            if request.steering_stack:
                steered[request.steering_batch_key].append(number)
        self._steering = [self._build_step_steering(numbers) for numbers in steered.values()]
        self._edit_groups = [
            EditGroup(model, numbers, [self._main_rows[number] for number in numbers]) for numbers in groups.values()
        ]

    def _build_step_steering(self, rows: Sequence[int]) -> SteeringEdit:
        """Build the edit of a step: the only token of each row."""
        requests = [self._main_rows[row] for row in rows]
        stack = batch_attention_stacks([request.steering_stack for request in requests])
        return build_steering_edit(requests, stack, to_row_index(rows, self.model.device), slice(0, 1))

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
        steering = [
            edit
            for row, request in self._main_rows.items()
            for edit in build_prompt_steering(row, request, lengths[row])
        ]
        with self._apply(newest, edits, steering) as early_logits:
            yield early_logits

    @contextmanager
    def apply_to_step(self, cache: AlignedCache) -> Iterator[None]:
        """Apply the hooks to a pass over one token per row. Early logits are stored in the requests."""
        if not (self._edit_groups or self._steering or self._exits or self._kept_tokens):
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
        with self._apply(newest, edits, self._steering, hidden_keys if self._kept_tokens else None) as early_logits:
            yield
        for row, own_logits in early_logits.items():
            self._main_rows[row].early_logits = own_logits

    @contextmanager
    def _apply(
        self,
        newest: Mapping[int, int],
        edits: Sequence[AttentionEdit],
        steering: Sequence[SteeringEdit],
        hidden_keys: Tensor | None = None,
    ) -> Iterator[EarlyLogits]:
        with (
            self.model.attention_tap.edit(edits, hidden_keys),
            self.model.steering_tap.edit(steering),
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
