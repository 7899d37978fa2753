"""Edits of attention scores: the attention of the edited tokens is computed a second time, score by score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.pipeline.attention_hooks import (
    StatefulStack,
    batch_attention_stacks,
    compute_attention_batch_key,
    edit_attention,
    select_attention_stack,
    select_question_stack,
)
from decoding.pipeline.composition import copy_numbers
from decoding.tensor_hooks import ATTENTION_HOOKS, AttentionKeys
from decoding.vllm_engine.member import Member, build_stack
from decoding.vllm_engine.worker.attention.paged_attention import AttentionCall
from decoding.vllm_engine.worker.attention.second_attention import AttentionContext
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure

MAX_EDITED_TOKENS = 32  # edited in one call, which copies the keys and values that each token sees


@dataclass(frozen=True, slots=True, eq=False)
class EditedRequest:
    """A request whose attention is edited."""

    request_id: str
    batch_key: object  # requests with equal keys share hook calls
    stack: StatefulStack  # with states of *shape
    image_token_index: Tensor  # [prompt], as in `AttentionKeys`
    question_stack: StatefulStack  # strategies that also edit the prompt from `question_start` on
    question_start: int  # position after the last image; the length of a prompt that none of them edits


@dataclass(frozen=True, slots=True, eq=False)
class EditedTokens:
    """Tokens of a step whose attention is edited in one call. A request can have several, after a preemption."""

    requests: Sequence[EditedRequest]  # of the tokens
    rows: Tensor  # [n] rows of the step
    tokens: Tensor  # [n] numbers among the tokens of the step
    positions: Tensor  # [n] positions in prompt and answer
    image_token_index: Tensor  # [n, keys]
    generated: Tensor  # [n, keys] true for tokens of the answer
    stack: StatefulStack  # with states of [n, *shape]


class GangAttentionEdits:
    """The `edit_attention_scores` and `gate_heads` hooks of one model runner.

    Args:
        context: The model and the strategy states.
    """

    def __init__(self, context: AttentionContext) -> None:
        self.context = context
        self._requests: dict[str, EditedRequest] = {}
        self._edited: list[EditedTokens] = []
        self._failures: dict[str, Exception] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no attention is edited in this step."""
        return not self._edited

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Find the tokens of the step whose attention is edited.

        These are the last one of each prompt, and the answer's. Strategies with `edits_question` also edit the prompt
        after its last image.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._failures = {}
        self._requests = {key: self._requests[key] for key in rows.request_ids if key in self._requests}
        groups: dict[tuple[bool, object], list[tuple[EditedRequest, int, int]]] = defaultdict(list)
        for row, member in rows.members.items():
            if not edits_attention(member):
                continue
            try:
                request = self._get_request(rows.request_ids[row], member)
            except Exception as error:  # other requests of the step go on
                record_failure(token_info, rows.request_ids[row], error, "edits_not_built")
                continue
            prompt_length = int(rows.num_tokens[row] - rows.num_generated_tokens[row])
            num_computed = int(rows.num_computed_tokens[row])
            newest = max(prompt_length - 1 - num_computed, 0)
            count = int(rows.token_starts[row + 1] - rows.token_starts[row])
            groups[False, request.batch_key] += [(request, row, offset) for offset in range(newest, count)]
            question = range(max(request.question_start - num_computed, 0), min(newest, count))
            groups[True, request.batch_key] += [(request, row, offset) for offset in question]
        self._edited = [
            self._build_edited_tokens(tokens[start : start + MAX_EDITED_TOKENS], rows, is_question=is_question)
            for (is_question, _), tokens in groups.items()
            for start in range(0, len(tokens), MAX_EDITED_TOKENS)
        ]

    def apply(self, call: AttentionCall) -> None:
        """Compute the attention of the edited tokens a second time, and write it into the output of the call."""
        for edited in self._edited:
            length = edited.image_token_index.shape[1]
            keys, values = call.gather_keys_and_values(edited.rows, edited.positions, length)
            visible = call.build_mask(edited.positions, length)
            scores, gates = self._edit_scores(edited, call.layer, call.compute_scores(edited.tokens, keys), visible)
            weights = call.compute_weights(scores, edited.positions)
            weights = torch.unflatten(weights, 1, (keys.shape[1], -1))
            outputs = (weights @ values).flatten(1, 2)
            call.output[edited.tokens] = outputs if gates is None else outputs * gates[..., None]

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Drop the tokens of the step, and report hooks that failed.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._edited = []
        failures, self._failures = self._failures, {}
        for request_id, error in failures.items():
            record_failure(token_info, request_id, error, "edit_attention_scores_failed")

    def reset(self) -> None:
        """Drop the step."""
        self._requests, self._edited, self._failures = {}, [], {}

    def _edit_scores(
        self, tokens: EditedTokens, layer: int, scores: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Call the hooks on the scores of all heads. A hook that fails, fails its own request.

        Args:
            tokens: The edited tokens.
            layer: Number of the layer, from 0.
            scores: [n, own heads, keys].
            visible: [n, keys] true for keys that the mask leaves.

        Returns:
            The edited scores of the own heads, and [n, own heads] factors of their outputs, or None for all 1.
        """
        shards, index, statistics = self.context.shards, tokens.image_token_index, self.context.statistics
        keys = AttentionKeys(index, layer, self.context.num_layers, tokens.generated, visible, statistics)
        edited, gates, failures = edit_attention(tokens.stack, keys, shards.gather(scores, 1))
        self._failures |= {tokens.requests[number].request_id: error for number, error in failures.items()}
        own_gates = None if gates is None else shards.select_own(gates, 1)
        return shards.select_own(edited, 1), own_gates

    def _get_request(self, request_id: str, member: Member) -> EditedRequest:
        request = self._requests.get(request_id)
        if request is None:
            context = self.context
            stack = select_attention_stack(build_stack(member.stack), context.states.get_all(member.states))
            image_tokens = context.find_image_tokens(request_id)
            question_stack = select_question_stack(stack)
            start = image_tokens.end if question_stack else len(image_tokens.index)
            index = image_tokens.index.to(context.device, non_blocking=True)
            key = compute_attention_batch_key(stack)
            request = EditedRequest(request_id, key, stack, index, question_stack, start)
            self._requests[request_id] = request
        return request

    def _build_edited_tokens(
        self, tokens: Sequence[tuple[EditedRequest, int, int]], rows: StepRows, *, is_question: bool
    ) -> EditedTokens:
        """Describe tokens, given as request, row and offset among the tokens of the row in this step."""
        requests = [request for request, _, _ in tokens]
        positions = [int(rows.num_computed_tokens[row]) + offset for _, row, offset in tokens]
        length = max(positions) + 1
        index = torch.stack([fit_length(request.image_token_index, length) for request in requests])
        stack = batch_attention_stacks(
            [request.question_stack if is_question else request.stack for request in requests]
        )
        rows_index, tokens_index, positions_index, prompt_lengths = (
            copy_numbers(numbers, torch.long, self.context.device)
            for numbers in (
                [row for _, row, _ in tokens],
                [int(rows.token_starts[row]) + offset for _, row, offset in tokens],
                positions,
                [len(request.image_token_index) for request in requests],
            )
        )
        generated = torch.arange(length, device=self.context.device) >= prompt_lengths[:, None]
        return EditedTokens(requests, rows_index, tokens_index, positions_index, index, generated, stack)


def edits_attention(member: Member) -> bool:
    """Return whether a strategy of the member edits attention. Branches have no stack."""
    return any(ATTENTION_HOOKS & spec.list_hooks() for spec in member.stack)


def fit_length(index: Tensor, length: int) -> Tensor:
    """Cut or extend an [n] index of image tokens to a length. Added tokens are text."""
    return torch.nn.functional.pad(index, (0, length - len(index)), value=-1)
