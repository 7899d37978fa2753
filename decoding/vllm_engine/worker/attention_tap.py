"""Tap on the attention: the edits of attention scores of gangs.

vLLM's attention is an opaque operator, compiled or not, which calls the `forward` of a layer's implementation. After
that call the keys and values of all tokens are in the KV cache. The attention of the edited tokens is computed a second
time from there, score by score, and replaces the output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.pipeline.attention_hooks import StatefulStack, edit_attention_scores
from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.logits_hooks import stack_states
from decoding.tensor_hooks import AttentionKeys
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker.attention_layers import has_attention
from decoding.vllm_engine.worker.paged_attention import build_mask, check_attention, gather_keys_and_values
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure

MAX_EDITED_TOKENS = 32  # edited in one call, which copies the keys and values that each token sees


@dataclass(frozen=True, slots=True, eq=False)
class EditedRequest:
    """A request whose attention is edited."""

    request_id: str
    batch_key: object  # requests with equal keys share hook calls
    stack: StatefulStack  # with states of *shape
    image_token_index: Tensor  # [prompt], as in `AttentionKeys`


@dataclass(frozen=True, slots=True, eq=False)
class GangAttentionEdit:
    """Tokens of a step whose attention is edited in one call. A request can have several, after a preemption."""

    requests: Sequence[EditedRequest]  # of the tokens
    rows: Tensor  # [n] rows of the step
    tokens: Tensor  # [n] numbers among the tokens of the step
    positions: Tensor  # [n] positions in prompt and answer
    image_token_index: Tensor  # [n, keys]
    stack: StatefulStack  # with states of [n, *shape]


class GangAttentionTap:
    """The attention tap of one model runner.

    Args:
        layers: vLLM's attention layers. The `forward` of their implementations is wrapped.
        states: Store of the strategy states.
        index_image_tokens: Function of a request id. It returns the [prompt] index of `AttentionKeys`.
        device: Device of the model.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        states: StateStore,
        index_image_tokens: Callable[[str], Tensor],
        device: torch.device,
    ) -> None:
        self.states = states
        self.device = device
        self.num_layers = len(layers)
        self._index_image_tokens = index_image_tokens
        self._requests: dict[str, EditedRequest] = {}
        self._edits: list[GangAttentionEdit] = []
        self._failures: dict[str, Exception] = {}
        for layer, module in enumerate(layers):
            module.impl.forward = self._wrap(module.impl, layer)

    @classmethod
    def from_runner(cls, runner: Any, states: StateStore) -> GangAttentionTap:
        """Tap the model of a model runner.

        Args:
            runner: vLLM's model runner.
            states: Store of the strategy states.

        Returns:
            The tap. `ValueError` gives the reason if the attention cannot be edited.

        Raises:
            ValueError: The model has no attention with a KV cache.
        """
        layers = [module.attn for module in runner.model.modules() if has_attention(module)]
        if not layers:
            raise ValueError("the model has no attention with a KV cache")
        check_attention(layers, bool(runner.vllm_config.compilation_config.pass_config.fuse_attn_quant))
        return cls(layers, states, lambda request_id: index_image_tokens(runner.requests[request_id]), runner.device)

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Find the tokens of the step whose attention is edited: the last one of each prompt, and the answer's.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._failures = {}
        self._requests = {key: self._requests[key] for key in rows.request_ids if key in self._requests}
        groups: dict[object, list[tuple[EditedRequest, int, int]]] = defaultdict(list)
        for row, member in rows.members.items():
            if not edits_attention(member):
                continue
            try:
                request = self._get_request(rows.request_ids[row], member)
            except Exception as error:  # other requests of the step go on
                record_failure(token_info, rows.request_ids[row], error, "edits_not_built")
                continue
            prompt_length = int(rows.num_tokens[row] - rows.num_generated_tokens[row])
            first = max(prompt_length - 1 - int(rows.num_computed_tokens[row]), 0)
            count = int(rows.token_starts[row + 1] - rows.token_starts[row])
            groups[request.batch_key] += [(request, row, offset) for offset in range(first, count)]
        self._edits = [
            self._build_edits(tokens[start : start + MAX_EDITED_TOKENS], rows)
            for tokens in groups.values()
            for start in range(0, len(tokens), MAX_EDITED_TOKENS)
        ]
        if self._edits and self.device.type == "cuda":
            avoid_cuda_graphs()

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Drop the edits, and report hooks that failed.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._edits = []
        failures, self._failures = self._failures, {}
        for request_id, error in failures.items():
            record_failure(token_info, request_id, error, "edit_attention_scores_failed")

    def reset(self) -> None:
        """Drop the step."""
        self._requests, self._edits, self._failures = {}, [], {}

    def rewrite_rows(
        self, module: Any, layer: int, query: Tensor, cache_blocks: Tensor, block_table: Tensor, output: Tensor
    ) -> None:
        """Compute the attention of the edited tokens a second time.

        Args:
            module: vLLM's attention layer.
            layer: Number of the layer, from 0.
            query: [tokens, heads, head_dim].
            cache_blocks: [blocks, kv heads, block size, 2 * head_dim] KV cache of the layer.
            block_table: [rows, blocks] blocks of each row.
            output: [tokens, heads, head_dim], changed in place.
        """
        for edits in self._edits:
            length = edits.image_token_index.shape[1]
            keys, values = gather_keys_and_values(
                module, cache_blocks, block_table[edits.rows], edits.positions, length
            )
            # Heads that share a KV head are side by side: [n, kv heads, heads of each, head_dim].
            queries = torch.unflatten(query[edits.tokens], 1, (keys.shape[1], -1))
            scores = (queries @ keys.mT).flatten(1, 2) * module.impl.scale  # [n, heads, length]
            scores = self._edit_scores(edits, layer, scores)
            scores = scores.masked_fill(~build_mask(module.impl, edits.positions, length)[:, None], -torch.inf)
            weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
            weights = torch.unflatten(weights, 1, (keys.shape[1], -1))
            output[edits.tokens] = (weights @ values).flatten(1, 2)

    def _wrap(self, impl: Any, layer: int) -> Callable[..., Any]:
        """Wrap the `forward` of an attention implementation."""
        original = impl.forward

        def forward(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            kv_cache: Tensor,
            metadata: Any,
            output: Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            result = original(module, query, key, value, kv_cache, metadata, output, *args, **kwargs)
            if self._edits and metadata is not None:
                self.rewrite_rows(module, layer, query, kv_cache, metadata.block_table, output)
            return result

        return forward

    def _edit_scores(self, edits: GangAttentionEdit, layer: int, scores: Tensor) -> Tensor:
        """Call the hooks on [n, heads, keys] scores. A hook that fails, fails its own request."""
        keys = AttentionKeys(edits.image_token_index, layer, self.num_layers)
        edited, failures = edit_attention_scores(edits.stack, keys, scores)
        self._failures |= {edits.requests[number].request_id: error for number, error in failures.items()}
        return edited

    def _get_request(self, request_id: str, member: Member) -> EditedRequest:
        request = self._requests.get(request_id)
        if request is None:
            states = {strategy: self.states.get(handle) for strategy, handle in member.states.items()}
            strategies = [spec.build() for spec in member.stack]
            stack = [
                (strategy, states.get(strategy.name, {}))
                for strategy in reversed(strategies)
                if "edit_attention_scores" in strategy.list_hooks()
            ]
            shapes = tuple((name, tensor.shape) for _, state in stack for name, tensor in state.items())
            key = (tuple(strategy.batch_key() for strategy, _ in stack), shapes)
            index = self._index_image_tokens(request_id).to(self.device, non_blocking=True)
            request = self._requests[request_id] = EditedRequest(request_id, key, stack, index)
        return request

    def _build_edits(self, tokens: Sequence[tuple[EditedRequest, int, int]], rows: StepRows) -> GangAttentionEdit:
        """Build the edit of tokens, given as request, row and offset among the tokens of the row in this step."""
        requests = [request for request, _, _ in tokens]
        positions = [int(rows.num_computed_tokens[row]) + offset for _, row, offset in tokens]
        length = max(positions) + 1
        index = torch.stack([fit_length(request.image_token_index, length) for request in requests])
        stack = [
            (strategy, stack_states([request.stack[depth][1] for request in requests]))
            for depth, (strategy, _) in enumerate(requests[0].stack)
        ]
        rows_index, tokens_index, positions_index = (
            copy_numbers(numbers, torch.long, self.device)
            for numbers in (
                [row for _, row, _ in tokens],
                [int(rows.token_starts[row]) + offset for _, row, offset in tokens],
                positions,
            )
        )
        return GangAttentionEdit(requests, rows_index, tokens_index, positions_index, index, stack)


def edits_attention(member: Member) -> bool:
    """Return whether a strategy of the member edits attention. Branches have no stack."""
    return any("edit_attention_scores" in spec.list_hooks() for spec in member.stack)


def fit_length(index: Tensor, length: int) -> Tensor:
    """Cut or extend an [n] index of image tokens to a length. Added tokens are text."""
    return torch.nn.functional.pad(index, (0, length - len(index)), value=-1)


def index_image_tokens(request: Any) -> Tensor:
    """Index the image tokens of a prompt.

    Args:
        request: Request in vLLM's model runner.

    Returns:
        [prompt] index from 0 on; -1 for text.
    """
    is_image = torch.zeros(request.num_prompt_tokens, dtype=torch.bool)
    for feature in request.mm_features:
        place = feature.mm_position
        own = slice(place.offset, place.offset + place.length)
        is_image[own] = True if place.is_embed is None else place.is_embed
    return torch.where(is_image, is_image.cumsum(0) - 1, -1)


def avoid_cuda_graphs() -> None:
    """Run this step without CUDA graphs, which would not call Python code of the attention."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context

    get_forward_context().cudagraph_runtime_mode = CUDAGraphMode.NONE
