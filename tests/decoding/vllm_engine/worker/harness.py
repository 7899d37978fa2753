"""Toy steps, attention layers and decoders with the interfaces of vLLM's. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoding.requests import MAIN
from decoding.vllm_engine.member import Member, StrategySpec
from decoding.vllm_engine.worker.attention.attention_tap import GangAttentionTap
from decoding.vllm_engine.worker.attention.second_attention import AttentionContext
from decoding.vllm_engine.worker.early_exit_tap import GangEarlyExitTap, TappedLayer
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.image_tokens import ImageTokens
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo
from tests.decoding.hf_engine.harness import build_stack

CPU = torch.device("cpu")
VOCAB = 50
HEADS, KV_HEADS, HEAD_DIM, BLOCK, BLOCKS_OF_ROW = 4, 2, 8, 4, 4  # of the attention
PROMPT = 6
IMAGE = (-1, 0, 1, 2, -1, -1)  # index of the image tokens of the prompt
LAYERS, WIDTH, MAX_ROWS = 4, 8, 6  # of the decoder


# Steps


def build_specs(names: str, **parameters: Any) -> tuple[StrategySpec, ...]:
    return tuple(StrategySpec.from_strategy(strategy) for strategy in build_stack(names, **parameters))


def build_rows(*members: Member | None, is_sampling: list[bool] | None = None, generated: int = 0) -> StepRows:
    count = len(members)
    return StepRows(
        request_ids=[f"row-{number}" for number in range(count)],
        members={number: member for number, member in enumerate(members) if member is not None},
        token_starts=np.arange(count + 1),
        num_computed_tokens=np.full(count, 10),
        num_generated_tokens=np.full(count, generated),
        token_ids=np.zeros((count, 10 + generated), dtype=np.int64),
        num_tokens=np.full(count, 10 + generated),
        is_sampling=np.array(is_sampling or [True] * count),
    )


def build_step(
    *members: Member | None,
    lengths: list[int],
    computed: list[int] | None = None,
    is_sampling: list[bool] | None = None,
) -> StepRows:
    """Build a step in which each row runs several tokens.

    Args:
        members: Members of the rows.
        lengths: Tokens that each row runs.
        computed: Tokens of each row before the step. The rows then have prompts of `PROMPT` tokens, and answers.
        is_sampling: Whether each row samples a token.

    Returns:
        The step.
    """
    step = build_rows(*members, is_sampling=is_sampling)
    step.token_starts[1:] = np.cumsum(lengths)
    if computed is not None:
        step.num_computed_tokens[:] = computed
        step.num_tokens[:] = [max(PROMPT, sum(each)) for each in zip(computed, lengths, strict=True)]
        step.num_generated_tokens[:] = step.num_tokens - PROMPT
    return step


DOLA, VCD = Member("dola", MAIN, 1, stack=build_specs("dola")), Member("vcd", MAIN, 1, stack=build_specs("vcd"))
OTHER = Member("other", MAIN, 1, stack=build_specs("truncate"))


# Attention


class FlashAttentionImpl:
    """Has the attributes of vLLM's class, and leaves the output at 0."""

    def __init__(self, window: int = 0) -> None:
        self.scale = HEAD_DIM**-0.5
        self.sliding_window = (window - 1, 0) if window else (-1, -1)
        self.logits_soft_cap, self.sinks, self.alibi_slopes = 0, None, None
        self.kv_cache_dtype, self.kv_sharing_target_layer_name, self.attn_type = "auto", None, "decoder"

    def forward(self, *args: Any) -> Tensor:
        output: Tensor = args[-1]
        return output


class ToyStep:
    """A step with random queries, and a KV cache in which the blocks of the rows are mixed."""

    def __init__(self, step: StepRows, device: torch.device) -> None:
        self.rows = step
        count = int(step.token_starts[-1])
        self.query = torch.randn(count, HEADS, HEAD_DIM, device=device)
        blocks = BLOCKS_OF_ROW * len(step.request_ids)
        self.cache = torch.randn(blocks, KV_HEADS, BLOCK, 2 * HEAD_DIM, device=device)
        self.block_table = torch.randperm(blocks, device=device).view(len(step.request_ids), -1)
        self.output = torch.zeros(count, HEADS, HEAD_DIM, device=device)

    def run(self, tap: GangAttentionTap, layer: Any) -> TokenInfo:
        token_info = TokenInfo()
        tap.before_forward(self.rows, token_info)
        self.call(layer)
        tap.after_forward(self.rows, token_info)
        return token_info

    def call(self, layer: Any) -> None:
        metadata = SimpleNamespace(block_table=self.block_table)
        layer.impl.forward(layer, self.query, None, None, self.cache, metadata, self.output)


def build_tap(device: torch.device, window: int = 0, states: StateStore | None = None) -> tuple[GangAttentionTap, Any]:
    layer = SimpleNamespace(impl=FlashAttentionImpl(window))
    image_tokens = ImageTokens(torch.tensor(IMAGE), 3, 4)
    statistics = {"hallucinated": torch.full((1, HEADS), 1.0), "real": torch.tensor([[0.5, 1.0, 2.0, 3.0]])}
    context = AttentionContext(
        1,
        states or StateStore(1 << 20),
        lambda _: image_tokens,
        device,
        HeadShards(),
        {name: tensor.to(device) for name, tensor in statistics.items()},
    )
    return GangAttentionTap([layer], context), layer


# Decoder


class ToyLayer(nn.Module):
    """A layer with the arguments of vLLM's, which leaves the sum to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden_states if residual is None else hidden_states + residual
        residual = residual + self.self_attn(residual).tanh()
        return self.mlp(residual).tanh(), residual


class ToyDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(ToyLayer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, hidden: Tensor) -> Tensor:
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(torch.arange(len(hidden)), hidden, residual)
        assert residual is not None
        return hidden + residual


class ToyAttention(nn.Module):
    """Stands for vLLM's attention with a KV cache."""


def is_toy_attention(module: object) -> bool:
    return isinstance(module, ToyAttention)


class ToyModel(nn.Module):
    """A model as vLLM nests it."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = ToyDecoder()  # its layers have no KV cache
        self.decoder: Any = ToyDecoder()
        self.decoder.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        for layer in self.decoder.layers:
            layer.attention = ToyAttention()
        self.lm_head = nn.Linear(WIDTH, VOCAB)


def tap_decoder(decoder: Any) -> GangEarlyExitTap:
    return GangEarlyExitTap(decoder, decoder.head, False, MAX_ROWS, torch.float32, CPU)


def sum_layers(decoder: Any, hidden: Tensor, depth: int) -> Tensor:
    """Return the hidden states after some layers, computed by hand."""
    for layer in list(decoder.layers)[:depth]:
        own = layer.layer if isinstance(layer, TappedLayer) else layer
        hidden = hidden + own.self_attn(hidden).tanh()
        hidden = hidden + own.mlp(hidden).tanh()
    return hidden
