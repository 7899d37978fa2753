"""What a CPU can do at most, and what a step of decoding would take if that were all that bounds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from decoding.hf_engine.model import Model

REPEATS = 7


@dataclass(frozen=True)
class Machine:
    bandwidth: float  # bytes per second, reading
    arithmetic: float  # float32 operations per second, in a product of matrices

    @classmethod
    def measured(cls) -> Machine:
        """With the threads that torch has now; the best of some repetitions."""
        much, square = torch.ones(1 << 26), torch.ones(1024, 1024)
        return cls(much.nbytes / best(much.sum), 2 * 1024**3 / best(lambda: square @ square))


@dataclass(frozen=True)
class Sizes:
    weights: int  # bytes that every step reads: the decoder's layers and the head
    kv: int  # bytes of keys and values of one token

    @classmethod
    def of(cls, model: Model) -> Sizes:
        text = model.decoder.config
        width = text.num_key_value_heads * getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
        layers = sum(weight.nbytes for weight in model.decoder.layers.parameters())
        return cls(layers + model.head.weight.nbytes, 2 * model.layers * width * model.head.weight.element_size())

    def seconds(self, rows: int, columns: int, machine: Machine) -> float:
        """Of a step, bound by what it reads or by its products, whichever takes longer."""
        reads = self.weights + rows * columns * self.kv
        products = 2 * rows * (self.weights + columns * self.kv) / 4  # two operations for each float32 read by a row
        return max(reads / machine.bandwidth, products / machine.arithmetic)


def best(work: Callable[[], object]) -> float:
    """Seconds."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
