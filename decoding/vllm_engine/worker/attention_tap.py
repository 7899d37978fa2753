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

from decoding.errors import StrategyFailed
from decoding.pipeline.composition import attribute_errors, copy_numbers
from decoding.pipeline.logits_hooks import stack_states
from decoding.tensor_hooks import AttentionKeys, TensorHooks, Tensors
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker.head_projection import has_attention
from decoding.vllm_engine.worker.paged_attention import build_mask, check_attention, gather_keys_and_values
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure

MAX_TOKENS = 32  # edited in one call, which copies the keys and values that each token sees


@dataclass(frozen=True, slots=True, eq=False)
class EditingRequest:
    """A request whose attention is edited."""

    request_id: str
    batch_key: object  # requests with equal keys share hook calls
    stack: Sequence[tuple[TensorHooks, Tensors]]  # innermost first, with the states
    image_token_index: Tensor  # [prompt], as in `AttentionKeys`


@dataclass(frozen=True, slots=True, eq=False)
class TokenEdits:
    """Tokens of a step whose attention is edited in one call. A request can have several, after a preemption."""

    requests: Sequence[EditingRequest]  # of the tokens
    rows: Tensor  # [n] rows of the step
    tokens: Tensor  # [n] numbers among the tokens of the step
    positions: Tensor  # [n] positions in prompt and answer
    image_token_index: Tensor  # [n, keys]
    stack: Sequence[tuple[TensorHooks, Tensors]]  # innermost first, with states of [n, *shape]


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
        self._requests: dict[str, EditingRequest] = {}
        self._edits: list[TokenEdits] = []
        self._failures: dict[str, Exception] = {}
        for number, layer in enumerate(layers):
            layer.impl.forward = self._wrap(layer.impl, number)

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
        groups: dict[object, list[tuple[EditingRequest, int, int]]] = defaultdict(list)
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
            groups[request.batch_key] += [(request, row, number) for number in range(first, count)]
        self._edits = [
            self._build_edits(tokens[start : start + MAX_TOKENS], rows)
            for tokens in groups.values()
            for start in range(0, len(tokens), MAX_TOKENS)
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

    def rewrite(
        self, layer: Any, number: int, query: Tensor, cache_blocks: Tensor, block_table: Tensor, output: Tensor
    ) -> None:
        """Compute the attention of the edited tokens a second time.

        Args:
            layer: vLLM's attention layer.
            number: Number of the layer, from 0.
            query: [tokens, heads, head_dim].
            cache_blocks: [blocks, kv heads, block size, 2 * head_dim] KV cache of the layer.
            block_table: [rows, blocks] blocks of each row.
            output: [tokens, heads, head_dim], changed in place.
        """
        for edits in self._edits:
            length = edits.image_token_index.shape[1]
            keys, values = gather_keys_and_values(layer, cache_blocks, block_table[edits.rows], length)
            # Heads that share a KV head are side by side: [n, kv heads, heads of each, head_dim].
            queries = torch.unflatten(query[edits.tokens], 1, (keys.shape[1], -1))
            scores = (queries @ keys.mT).flatten(1, 2) * layer.impl.scale  # [n, heads, length]
            scores = self._edit_scores(edits, number, scores)
            scores = scores.masked_fill(~build_mask(layer.impl, edits.positions, length)[:, None], -torch.inf)
            weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
            weights = torch.unflatten(weights, 1, (keys.shape[1], -1))
            output[edits.tokens] = (weights @ values).flatten(1, 2)

    def _wrap(self, impl: Any, number: int) -> Callable[..., Any]:
        """Wrap the `forward` of an attention implementation."""
        original = impl.forward

        def forward(
            layer: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            kv_cache: Tensor,
            metadata: Any,
            output: Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            result = original(layer, query, key, value, kv_cache, metadata, output, *args, **kwargs)
            if self._edits and metadata is not None:
                self.rewrite(layer, number, query, kv_cache, metadata.block_table, output)
            return result

        return forward

    def _edit_scores(self, edits: TokenEdits, number: int, scores: Tensor) -> Tensor:
        """Call the hooks on [n, heads, keys] scores. A strategy that raises fails its requests, not the step."""
        keys, edited = AttentionKeys(edits.image_token_index, number, self.num_layers), scores
        try:
            for strategy, state in edits.stack:
                with attribute_errors(strategy):
                    edited = strategy.edit_attention_scores(edited, keys, state)
                if (edited.shape, edited.dtype) != (scores.shape, scores.dtype):
                    problem = (
                        f"returned {list(edited.shape)} from `edit_attention_scores` instead of {list(scores.shape)}"
                    )
                    raise StrategyFailed(strategy.name, problem)
        except Exception as error:
            self._failures |= dict.fromkeys((request.request_id for request in edits.requests), error)
            return scores
        return edited

    def _get_request(self, request_id: str, member: Member) -> EditingRequest:
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
            request = self._requests[request_id] = EditingRequest(request_id, key, stack, index)
        return request

    def _build_edits(self, tokens: Sequence[tuple[EditingRequest, int, int]], rows: StepRows) -> TokenEdits:
        """Build the edits of tokens, given as request, row and number in the row."""
        requests = [request for request, _, _ in tokens]
        positions = [int(rows.num_computed_tokens[row]) + number for _, row, number in tokens]
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
                [int(rows.token_starts[row]) + number for _, row, number in tokens],
                positions,
            )
        )
        return TokenEdits(requests, rows_index, tokens_index, positions_index, index, stack)


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
