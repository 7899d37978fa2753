"""Interface of the code that computes the attention of single tokens a second time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from decoding.tensor_hooks import Tensors
from decoding.vllm_engine.worker.attention.paged_attention import AttentionCall
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.image_tokens import FindImageTokens
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_tap import StepTap


@dataclass(frozen=True, slots=True, eq=False)
class AttentionContext:
    """The model and the strategy states, for each `SecondAttention` of one model runner.

    Attributes:
        num_layers: Layers of the model.
        states: Store of the strategy states.
        find_image_tokens: Function of a request id. It returns the image tokens of the prompt.
        device: Device of the model.
        shards: The heads that this process runs.
        statistics: Name -> [layers, heads] statistics of the model.
    """

    num_layers: int
    states: StateStore
    find_image_tokens: FindImageTokens
    device: torch.device
    shards: HeadShards
    statistics: Tensors = field(default_factory=dict)


class SecondAttention(StepTap, Protocol):
    """Computes the attention of some tokens of a step a second time, in each layer."""

    @property
    def is_idle(self) -> bool:
        """Whether no token of this step is computed a second time."""
        ...

    def apply(self, call: AttentionCall) -> None:
        """Compute the attention of the tokens in one layer."""
        ...
