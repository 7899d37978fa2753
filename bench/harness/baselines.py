"""Baselines of decoding: serial decoding as in the papers' own code, and the lower bound of the hardware.

Serial decoding runs one request after the other, with one forward pass for each branch. The lower bound comes from the
CPU's memory bandwidth and arithmetic throughput.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from decoding.hf_engine.model.model import Model
from decoding.text.prompt_encoder import ModelInputs

REPEATS = 7
MixFunction = Callable[[list[Tensor]], Tensor]


@torch.inference_mode()
def time_decoding(model: Model, prompts: list[ModelInputs], mix: MixFunction, tokens: int) -> float:
    """Return the seconds per token after the first, greedy, with one cache for each branch."""
    caches = [DynamicCache() for _ in prompts]
    logits = [read_prompt(model, prompt, cache) for prompt, cache in zip(prompts, caches, strict=True)]
    token = int(mix(logits).argmax())
    started_at = time.perf_counter()
    for _ in range(tokens - 1):
        ids = torch.tensor([[token]])
        logits = [
            model.network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
            for cache in caches
        ]
        token = int(mix(logits).argmax())
    return (time.perf_counter() - started_at) / (tokens - 1)


@torch.inference_mode()
def time_prompts(model: Model, prompts: list[ModelInputs]) -> float:
    """Return the seconds of the passes over the prompts of all branches."""
    started_at = time.perf_counter()
    for prompt in prompts:
        read_prompt(model, prompt, DynamicCache())
    return time.perf_counter() - started_at


def read_prompt(model: Model, prompt: ModelInputs, cache: DynamicCache) -> Tensor:
    """Return the logits [vocab] after a prompt."""
    logits: Tensor = model.network(
        input_ids=prompt.ids[None], **prompt.extras, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits[0, -1]
    return logits


@dataclass(frozen=True)
class HardwareLimits:
    """Bandwidth and arithmetic throughput of the CPU."""

    bandwidth: float  # bytes read per second
    arithmetic: float  # float32 operations per second in a matrix product

    @classmethod
    def measure(cls) -> HardwareLimits:
        """Measure with torch's current number of threads; the best of some repetitions counts."""
        vector, matrix = torch.ones(1 << 26), torch.ones(1024, 1024)
        return cls(
            vector.nbytes / measure_best_time(vector.sum), 2 * 1024**3 / measure_best_time(lambda: matrix @ matrix)
        )


@dataclass(frozen=True)
class StepSizes:
    """Bytes that a decoding step reads."""

    weights: int  # bytes that every step reads: the decoder's layers and the head
    kv: int  # bytes of keys and values of one token

    @classmethod
    def of(cls, model: Model) -> StepSizes:
        """Compute the sizes of a model."""
        text = model.decoder.config
        width = text.num_key_value_heads * getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
        layers = sum(weight.nbytes for weight in model.decoder.layers.parameters())
        return cls(layers + model.head.weight.nbytes, 2 * model.num_layers * width * model.head.weight.element_size())

    def compute_minimum_step_seconds(self, rows: int, columns: int, limits: HardwareLimits) -> float:
        """Return the larger of the times to read and to compute a step.

        Args:
            rows: Rows of the batch.
            columns: Tokens in the cache of each row.
            limits: Limits of the CPU.

        Returns:
            Seconds.
        """
        bytes_read = self.weights + rows * columns * self.kv
        operations = 2 * rows * (self.weights + columns * self.kv) / 4  # two operations for each float32 read by a row
        return max(bytes_read / limits.bandwidth, operations / limits.arithmetic)


def measure_best_time(work: Callable[[], object]) -> float:
    """Return the best time of some repetitions in seconds."""
    times = []
    for _ in range(REPEATS):
        started_at = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_at)
    return min(times)
